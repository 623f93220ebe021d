"""An engine that needs no model, for tests and benchmarks of everything else."""

from __future__ import annotations

import asyncio
import time

import xxhash

from mpcot.asking.engines.engine import Ask, EngineStopped, Reply
from mpcot.asking.prompts import answer
from mpcot.config import ScriptedEngine
from mpcot.schemes.scheme import Scheme


class Scripted:
    """Answers by rule, a given share of them right. Each answer depends only on its key and seed."""

    never_hangs = False
    spent: float | None = None

    def __init__(self, engine: ScriptedEngine, scheme: Scheme) -> None:
        self.engine, self.scheme = engine, scheme
        self.asked = 0
        time.sleep(engine.start_s)

    async def reply(self, ask: Ask) -> Reply:
        await self._misbehave(ask)
        draw = xxhash.xxh3_64_intdigest(f"{ask.key}/{ask.seed}".encode())
        chance, other = (draw & 0xFFFF) / 65536, (draw >> 16) & 0xFFFF
        if chance < self.engine.failure_share:
            return Reply("no form", None, 1, 2)
        codes = self.scheme.codes
        right = ((draw >> 32) & 0xFFFF) / 65536 < self.engine.accuracy and ask.gold in codes
        wrong = [c for c in codes if c != ask.gold]
        verdict = str(ask.gold) if right else wrong[other % len(wrong)]
        question = ask.chat[-1]["content"].splitlines()
        rationale = f"{question[0]} was compared with {question[1]}: remark {_letters(draw)}."
        logprobs = [-0.2 if code == verdict else -2.5 for code in codes]
        return Reply(answer(rationale, verdict), logprobs, 60, 20)

    def kill(self) -> None:
        """There is no process but this one."""

    async def _misbehave(self, ask: Ask) -> None:
        """Do what the settings ask for: log the request, take time, hang, or stop."""
        script = self.engine
        self.asked += 1
        number = self.asked
        if script.log:
            with open(script.log, "a", encoding="utf-8") as file:
                file.write(f"{ask.key}\n")
        if script.delay_s:
            await asyncio.sleep(script.delay_s)
        if script.hangs_after is not None and number > script.hangs_after:
            await asyncio.Event().wait()
        if script.stops_after is not None and number > script.stops_after:
            raise EngineStopped(f"its processes are gone after {script.stops_after} answers")
        if script.stops_on and any(script.stops_on in message["content"] for message in ask.chat):
            raise EngineStopped(f"its processes are gone since it was asked about {script.stops_on!r}")


def _letters(draw: int) -> str:
    """Return a word of three letters; a number would not be grounded in the pair."""
    return f"{draw % 997:03d}".translate(str.maketrans("0123456789", "abcdefghij"))
