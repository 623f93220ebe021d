"""The Ray Data actor that has an engine and writes its answers to parquet parts."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from cluster.base.errors import UserError
from cluster.base.shared_folder import SharedFolder
from mpcot.asking.answer_parts import PartWriter, Tries
from mpcot.asking.answers import TooManyFailed, least_share, too_many_failed
from mpcot.asking.engines.engine import Ask, EngineStopped, Reply, StageStopped
from mpcot.asking.engines.openai_engine import AnyMeter
from mpcot.asking.engines.start import start_engine
from mpcot.asking.failure_reasons import ENGINE_ERROR, PROMPT_TOO_LONG, STOPS_ENGINE, kind_of
from mpcot.asking.parsing import parse_answer
from mpcot.asking.plan import GenerationPlan
from mpcot.asking.poison_requests import ROOM, Gate, PoisonRequests
from mpcot.perspectives.perspective import Perspective
from mpcot.schemes.scheme import Scheme, filled_up
from mpcot.votes import logprobs_of

TOKENS = ("prompt_tokens", "cached_tokens", "output_tokens")
NOTHING = Reply("", None, 0, 0)
TICK_S = 1.0
BOARD_S = 5.0  # the longest wait for the board, in which nobody looks whether the engine hangs
STOPPED = "stopped"


@dataclass(frozen=True)
class Inside:
    """A request that is in the engine: the room that it takes there, and the columns that say whose answer it gets."""

    room: int
    owner: dict[str, Any]


class AnswerWorker:
    """Answers batches of pairs. Several batches are in flight at once, so that the engine is always busy.

    Args:
        answers: where parts are written.
        tried: where workers note what they begin.
        board: where workers put their counts and read those of the others.
        requested: number of requests of the stage, of which `max_failed_share` may fail.
        failed: number of requests that failed in earlier runs and are not asked again.
        meter: what grants requests to a server.
    """

    def __init__(
        self,
        plan: GenerationPlan,
        answers: SharedFolder,
        tried: SharedFolder,
        board: Any,
        requested: int,
        failed: int,
        meter: AnyMeter | None = None,
    ) -> None:
        self.plan, self.board, self.requested, self.failed = plan, board, requested, failed
        self.name = uuid.uuid4().hex[:12]
        self.parts = PartWriter(answers, self.name, plan.engine.replicas)
        self.tries = Tries(tried, answers, self.name)
        self.poison = PoisonRequests(tried.child(STOPPED), self.name, len(plan.perspectives) * plan.ask.samples)
        self.gate = Gate()
        self.inside: dict[str, Inside] = {}
        self.done = self.tokens = 0
        self.works = False
        self.stop: StageStopped | TooManyFailed | None = None
        self.reasons: Counter[str] = Counter()
        began = time.monotonic()
        self.engine = start_engine(plan.engine, plan.model, plan.scheme, plan.ask, meter)
        self.started = self.moved = self.shown = time.monotonic()
        self.start_s = self.started - began

    async def __call__(self, batch: pa.Table) -> AsyncIterator[dict[str, Any]]:
        rows = batch.to_pylist()
        answered = self.tries.begin(row["file"] for row in rows)
        asked = [(pair, *ask) for pair in rows for ask in requests_of(self.plan, pair)]
        if len(answered):
            known = answered.has(ask.key for *_, ask in asked)
            asked = [ask for ask, there in zip(asked, known, strict=True) if not there]
        self.poison.read()
        asked.sort(key=lambda ask: self.poison.times_suspected(ask[-1].key), reverse=True)
        try:
            replies = await self._watched([self._enter(*ask) for ask in asked])
        except EngineStopped as stopped:
            self._start_anew(stopped)
            raise
        sums = {name: [sum(getattr(reply, name) for reply in replies)] for name in TOKENS}
        yield {"answers": [len(replies)], "engine_start_s": [self.start_s]} | sums

    async def _watched(self, works: list[Coroutine[Any, Any, Reply]]) -> list[Reply]:
        """Wait for all answers. In the meantime write those that wait, and stop if there is no point in going on.

        Raises:
            EngineStopped: the engine is gone, or has finished no answer for `stalled_s` seconds.
            TooManyFailed: more answers have failed than may, or so many of the first ones that the others will hardly
                make up for them.
            StageStopped: no engine can answer; what was on its way has come and is written.
        """
        self.moved = time.monotonic()
        waiting = asyncio.gather(*works)
        # Where another error ends the wait, nobody reads this one, of which asyncio would complain later.
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            while not waiting.done():
                await asyncio.wait([waiting], timeout=TICK_S)
                self.parts.flush_old()
                self._check_moving()
                await self._show()
                if isinstance(self.stop, TooManyFailed):
                    waiting.cancel()
            if self.stop is not None:
                self.parts.flush()
                await asyncio.sleep(2 * TICK_S)  # Ray ends the other workers with this one: let them write theirs
                raise self.stop
            return waiting.result()
        finally:
            waiting.cancel()
            # Once the batch is yielded, Ray takes it as done, so its answers must be on disk by then. After an error,
            # those that are finished have been paid for.
            self.parts.flush()

    def _start_anew(self, stopped: EngineStopped) -> None:
        """End this process, unless too many have ended: Ray starts another, which asks for what is not written.

        An engine cannot be replaced in place: what is left of one that hangs may hold its GPU. Of the requests inside,
        those that were already suspected are the only suspects.
        """
        room = max((one.room for one in self.inside.values()), default=0)
        suspects = {key: one for key, one in self.inside.items() if one.room == room}
        search = room > 1 and (self.works or room < ROOM)
        poison = search and room == ROOM and all(map(self.poison.stopped_alone, suspects))
        idle = not self.done
        if poison:
            ((key, one),) = suspects.items()
            row = answer_row(Reply("", None, 0, 0, f"{STOPS_ENGINE}: {str(stopped)[:200]}"), self.plan.scheme)
            self._add(row | {"key": key, "tries": self.plan.ask.retries + 1} | one.owner)
            self.parts.flush()
        self.engine.kill()  # Ray ends the children of this process and not theirs, which hold the GPUs
        used, restarts = self.poison.add(list(suspects), poison, search, idle), self.plan.engine.replicas.restarts
        if used <= restarts:
            why = f"the request {next(iter(suspects))} stopped it" if poison else f"restart {used} of {restarts}"
            print(f"An engine stopped: {stopped}. Starting another ({why}).", file=sys.stderr, flush=True)
            os._exit(1)

    def _check_moving(self) -> None:
        stalled_s = self.plan.engine.replicas.stalled_s
        if not self.engine.never_hangs and time.monotonic() - self.moved > stalled_s:
            raise EngineStopped(f"it finished no answer for {stalled_s:g} s (engine.replicas.stalled_s)")

    async def _show(self) -> None:
        """Put this worker's counts on the board, and see whether all workers together have too many failures."""
        if time.monotonic() - self.shown < TICK_S:
            return
        self.shown = time.monotonic()
        speed = self.tokens / (self.shown - self.started)
        figures = {"tokens/s": round(speed, 1), "in flight": len(self.inside), "failed": self.reasons.total()}
        if self.engine.spent is not None:
            figures["spent"] = self.engine.spent
        try:
            put = self.board.put.remote(self.name, self.done, None, figures)
            newest = await asyncio.wait_for(put, BOARD_S)
        except Exception:  # the board's node may fail, which must not end the work
            return
        # The worker that found a poison request ended at once, so the board does not have it.
        poison = self.poison.found
        failed = sum(int(told["failed"]) for _, _, told in newest.values()) + poison
        # What fails at once is answered first, so requests on their way count too, as if they were good.
        asked = sum(done + int(told["in flight"]) for done, _, told in newest.values()) + poison
        most, reasons = self.plan.ask.max_failed_share, self.reasons + Counter({STOPS_ENGINE: poison})
        if (share := (failed + self.failed) / self.requested) > most:
            self.stop = TooManyFailed(too_many_failed(share, most, reasons))
        elif least_share(failed, asked) > most:
            self.stop = TooManyFailed(too_many_failed(failed / asked, most, reasons, asked))

    async def _enter(self, pair: dict[str, Any], perspective: Perspective, sample: int, ask: Ask) -> Reply:
        """Ask as soon as there is room in the engine."""
        room = self.poison.room(ask.key)
        owner = {"pair_id": pair["pair_id"], "perspective": perspective.name, "sample": sample}
        async with self.gate.seat(room):
            # If the engine stops, the request stays here, as a suspect.
            self.inside[ask.key] = Inside(room, owner)
            if room == ROOM and not self.works:
                await self._reply(self.plan.easy())
                self.works = True
            reply = await self._answer(ask, owner)
            del self.inside[ask.key]
        return reply

    async def _answer(self, ask: Ask, owner: dict[str, Any]) -> Reply:
        """Ask until an answer can be used, as often as may be. What was paid for is written even if the stage stops."""
        replies: list[Reply] = []
        for tried in range(self.plan.ask.retries + 1):
            try:
                replies.append(await self._reply(replace(ask, seed=ask.seed + tried, tried=tried)))
            except StageStopped as stopped:
                self.stop = stopped
                break
            reason = answer_row(replies[-1], self.plan.scheme, self.plan.ask.asks_confidence)["reason"]
            if reason is None or reason.startswith(PROMPT_TOO_LONG):
                break
        if not replies:
            return NOTHING
        sums = {name: sum(getattr(reply, name) for reply in replies) for name in TOKENS}
        reply = replace(replies[-1], billed=any(one.billed for one in replies), **sums)
        row = answer_row(reply, self.plan.scheme, self.plan.ask.asks_confidence)
        self._add(row | {"key": ask.key, "tries": len(replies)} | owner)
        self.works, self.moved = True, time.monotonic()
        self.tokens += reply.output_tokens
        return reply

    def _add(self, row: dict[str, Any]) -> None:
        self.parts.add(row)
        self.done += 1
        if row["reason"] is not None:
            self.reasons[kind_of(row["reason"])] += 1

    async def _reply(self, ask: Ask) -> Reply:
        try:
            return await self.engine.reply(ask)
        except (EngineStopped, StageStopped):
            raise
        except Exception as error:
            return Reply("", None, 0, 0, f"{ENGINE_ERROR}: {type(error).__name__}: {str(error)[:200]}")


def requests_of(plan: GenerationPlan, pair: dict[str, Any]) -> list[tuple[Perspective, int, Ask]]:
    """Return the requests of `pair` that have no answer yet, by its column `keys`.

    Raises:
        UserError: this worker derives other keys than the driver.
    """
    missing = set(pair["keys"])
    found = [ask for ask in plan.asks(pair) if ask[2].key in missing]
    if len(found) != len(missing):
        raise UserError("this worker derives other requests than the driver: run one version of broadfast on all nodes")
    return found


def answer_row(reply: Reply, scheme: Scheme, confidence: bool = False) -> dict[str, Any]:
    """Return a reply as columns of an answer. `reason` is set if it failed.

    Args:
        confidence: whether the answer was to say how sure it is, which then stands for missing log-probabilities.
    """
    parsed, logprobs = parse_answer(reply.text, scheme, confidence), reply.logprobs
    if logprobs is None and parsed.confidence is not None:
        logprobs = logprobs_of(filled_up({str(parsed.verdict): parsed.confidence}, scheme.codes))
    return {
        "rationale": parsed.rationale,
        "verdict": parsed.verdict,
        "logprobs": logprobs,
        "prompt_tokens": reply.prompt_tokens,
        "cached_tokens": reply.cached_tokens if reply.billed else None,
        "output_tokens": reply.output_tokens,
        "reason": reply.error or parsed.reason,
    }
