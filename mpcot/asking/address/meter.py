"""Grants requests and sums what they cost, for all workers of a run together, in a Ray actor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from cluster.base.placement import on_this_node
from mpcot.asking.answers import ANSWERS, OF_BATCH, USAGE
from mpcot.asking.engines.config import OpenAiEngine, Price
from mpcot.asking.read_parts import answers_in
from mpcot.config import Engine

LOOK_AGAIN_S = 0.2
LATE = 1.5  # times the timeout: what is on its way longer than this is lost
ROWS = 65536


@dataclass(frozen=True)
class Grant:
    """What a worker may do: send after `wait_s`, ask again after `wait_s` if not `granted`, or stop for good."""

    granted: bool
    wait_s: float = 0.0
    stop: str | None = None


@dataclass
class Meter:
    """Spaces requests and tokens evenly over time, and reserves money before it is spent.

    Attributes:
        spent: what answers have cost so far, with those of earlier runs.
        reserved: what the requests on their way may cost at most.
        on_way: how many they are, and `last` the time by which the last of them is over.
        requests_from, tokens_from: when the next request may be sent, by either limit.
    """

    engine: OpenAiEngine
    spent: float = 0.0
    now: Callable[[], float] = time.monotonic
    reserved: float = 0.0
    on_way: int = 0
    last: float = 0.0
    requests_from: float = 0.0
    tokens_from: float = 0.0

    def reserve(self, prompt_tokens: int, output_tokens: int) -> Grant:
        """Ask leave for one request of at most these tokens."""
        cost, most, now = self._cost(prompt_tokens, 0, output_tokens), self.engine.max_spend, self.now()
        if most is not None and self.spent + self.reserved + cost > most:
            if self.on_way and now < self.last:  # they will cost less than is reserved for them
                return Grant(False, LOOK_AGAIN_S)
            if self.spent + cost > most:
                return Grant(False, stop=over_budget(self.spent, cost, most))
            self.reserved, self.on_way = 0.0, 0  # a worker died with them
        self.reserved, self.on_way = self.reserved + cost, self.on_way + 1
        starts = max(now, self.requests_from, self.tokens_from)
        self.last = starts + LATE * self.engine.timeout_s
        if self.engine.requests_per_minute:
            self.requests_from = starts + 60 / self.engine.requests_per_minute
        self._take(prompt_tokens + output_tokens, starts)
        return Grant(True, starts - now)

    def settle(self, reserved: tuple[int, int], prompt_tokens: int, cached_tokens: int, output_tokens: int) -> float:
        """Take the tokens of an answer, or none where none came, for those reserved. Return what is spent in all."""
        self.reserved = max(0.0, self.reserved - self._cost(reserved[0], 0, reserved[1]))
        self.on_way = max(0, self.on_way - 1)
        self.spent += self._cost(prompt_tokens, cached_tokens, output_tokens)
        self._take(prompt_tokens + output_tokens - sum(reserved), self.tokens_from)
        return self.spent

    def pause(self, seconds: float) -> None:
        """Send nothing for so long: the server has asked for it."""
        self.requests_from = max(self.requests_from, self.now() + seconds)

    def _take(self, tokens: int, starts: float) -> None:
        if self.engine.tokens_per_minute:
            self.tokens_from = max(starts, self.tokens_from) + tokens * 60 / self.engine.tokens_per_minute

    def _cost(self, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> float:
        price = self.engine.price_per_million
        return price.of(prompt_tokens, cached_tokens, output_tokens) if price else 0.0


@dataclass
class SharedMeter:
    """The meter in an actor, as the driver starts it and workers use it."""

    actor: Any = field(repr=False)

    @classmethod
    def start(cls, engine: OpenAiEngine, spent: float) -> SharedMeter:
        """Start the actor on the connected Ray."""
        import ray

        return cls(ray.remote(**on_this_node())(Meter).remote(engine, spent))

    async def reserve(self, prompt_tokens: int, output_tokens: int) -> Grant:
        """See `Meter`."""
        return await self.actor.reserve.remote(prompt_tokens, output_tokens)

    async def settle(self, reserved: tuple[int, int], prompt: int, cached: int, output: int) -> float:
        """See `Meter`."""
        return await self.actor.settle.remote(reserved, prompt, cached, output)

    async def pause(self, seconds: float) -> None:
        """See `Meter`."""
        await self.actor.pause.remote(seconds)

    def stop(self) -> None:
        """End the actor."""
        import ray

        ray.kill(self.actor)


def over_budget(spent: float, cost: float, most: float) -> str:
    """Return the message about a budget that is used up."""
    return (
        f"the budget is used up: {spent:.4g} of engine.max_spend {most:g} is spent, and the next request may cost "
        f"{cost:.2g}. Raise engine.max_spend to go on."
    )


def usage_of(folders: Iterable[Path], price: Price | None = None) -> dict[str, float]:
    """Return the billed tokens of all answers in the parts of these stages, with those that were asked twice.

    With a price also their `cost`.
    """
    sums, cost = dict.fromkeys(USAGE, 0), 0.0
    for part in (part for folder in folders for part in (folder / ANSWERS).glob("*.parquet")):
        for batch in answers_in(part, list(USAGE), ROWS):
            if set(USAGE) <= set(batch.schema.names):  # parts of older versions have no such columns
                billed = batch.filter(pc.is_valid(batch["cached_tokens"]))
                used = tuple(pc.sum(billed[name]).as_py() or 0 for name in USAGE)
                sums = {name: sums[name] + tokens for name, tokens in zip(USAGE, used, strict=True)}
                if price:
                    prompt, cached, output = used
                    cost += price.of(prompt, cached, output, part.name.startswith(OF_BATCH))
    return {**sums, "cost": cost} if price else {**sums}


def spent_in(engine: OpenAiEngine, run_dir: Path) -> float:
    """Return what all stages of a run have spent so far, at today's prices."""
    return usage_of(run_dir.iterdir(), engine.price_per_million).get("cost", 0.0)


def usage_figures(engine: Engine, folder: Path) -> dict[str, float]:
    """Return the tokens of a stage and, where prices are known, what they cost; nothing if nobody is paid."""
    if not isinstance(engine, OpenAiEngine):
        return {}
    return {name: round(figure, 6) for name, figure in usage_of([folder], engine.price_per_million).items()}


def usage_said(usage: Mapping[str, float]) -> str:
    """Return the figures of `usage_figures` as text."""
    said = f"{usage['prompt_tokens']:,.0f} tokens of prompts ({usage['cached_tokens']:,.0f} from the host's cache) and "
    return f"{said}{usage['output_tokens']:,.0f} of answers" + (f" for {usage['cost']:,.2f}" if "cost" in usage else "")
