"""Finds the requests that stop engines, so that one bad prompt costs one answer and not the run.

Ray replaces an engine that stopped and hands its requests out again. Of the many that were in flight nobody knows
which one was the cause, so they are suspects: the next engine takes `FEW` of them at a time, the one after that takes
them one by one. A request that stops two engines while it is alone in them is poison, and becomes a failed answer.
Four engines find one such request among two thousand.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pyarrow as pa

from cluster.base.shared_folder import SharedFolder

ROOM = 2048  # requests in one engine at a time
FEW = 32
SEARCH_STEPS = 2  # engines that a search may cost before it counts: from all requests to few, from few to one
STOPPED_ENGINE = pa.schema(
    [pa.field("key", pa.string()), *(pa.field(name, pa.bool_()) for name in ("poison", "search", "idle"))]
)


class Gate:
    """Lets requests into an engine in their order while there is room. One request may take the room of many."""

    def __init__(self, room: int = ROOM) -> None:
        self.room = room
        self.turn = asyncio.Lock()
        self.freed = asyncio.Event()

    @asynccontextmanager
    async def seat(self, room: int) -> AsyncIterator[None]:
        """Wait for `room` and hold it. After an exception it stays taken: nothing may enter a stopped engine."""
        async with self.turn:  # a request that needs much room is not overtaken
            while self.room < room:
                self.freed.clear()
                await self.freed.wait()
            self.room -= room
        yield
        self.room += room
        self.freed.set()


@dataclass(frozen=True)
class StoppedEngine:
    """An engine that stopped, and the requests that may have stopped it.

    Attributes:
        poison: the engine worked, and its only request had already stopped another engine.
        search: the engine worked, and was asked nothing but suspects of an earlier stop.
        idle: the engine had not answered any request.
    """

    keys: frozenset[str]
    poison: bool
    search: bool
    idle: bool


class PoisonRequests:
    """All engines of a run that stopped, one file for each, shared by the workers of the run.

    Args:
        per_pair: requests of one pair, which may all be poison and follow one another.
    """

    def __init__(self, store: SharedFolder, worker: str, per_pair: int) -> None:
        self.store, self.worker, self.per_pair = store, worker, per_pair
        self.stopped: dict[str, StoppedEngine] = {}

    def read(self) -> None:
        """Read what other workers have written in the meantime."""
        for entry in self.store.files(".parquet"):
            if entry.name not in self.stopped:
                rows = [row for batch in self.store.batches(entry.name) for row in batch.to_pylist()]
                keys = frozenset(row["key"] for row in rows if row["key"] is not None)
                first = rows[0]
                self.stopped[entry.name] = StoppedEngine(keys, first["poison"], first["search"], first["idle"])

    def _suspected(self, key: str) -> list[StoppedEngine]:
        return [engine for engine in self.stopped.values() if key in engine.keys]

    def times_suspected(self, key: str) -> int:
        """Return how many engines stopped while they were asked this request."""
        return len(self._suspected(key))

    def stopped_alone(self, key: str) -> bool:
        """Return whether an engine stopped while this was its only request."""
        return any(len(engine.keys) == 1 for engine in self._suspected(key))

    def room(self, key: str) -> int:
        """Return how much room the request takes in an engine: the fewer suspects it was among, the more."""
        among = min((len(engine.keys) for engine in self._suspected(key)), default=None)
        if among is None:
            return 1
        return ROOM // FEW if among > FEW else ROOM

    @property
    def found(self) -> int:
        """How many poison requests have been found."""
        return sum(engine.poison for engine in self.stopped.values())

    def add(self, keys: Sequence[str], poison: bool, search: bool, idle: bool) -> int:
        """Write down that this worker's engine stopped, and return how many restarts the run has used.

        Each engine that stopped uses a restart, with two exceptions: it was asked a request that is now known to be
        poison, or it was one of the `SEARCH_STEPS` that each other stop may cost. Poison that is found while engines
        answer nothing else is the engine's own fault: beyond the requests of one pair it uses restarts as well.
        """
        flags = {"poison": poison, "search": search, "idle": idle}
        suspects: Sequence[str | None] = keys or [None]
        rows = [{"key": key} | flags for key in suspects]
        self.store.write_table(f"{self.worker}.parquet", pa.Table.from_pylist(rows, STOPPED_ENGINE))
        self.read()
        engines = list(self.stopped.values())
        known = frozenset[str]().union(*(engine.keys for engine in engines if engine.poison))
        unexplained = [engine for engine in engines if not engine.keys & known]
        searching = sum(engine.search for engine in unexplained)
        others = len(unexplained) - searching
        idle_poison = sum(engine.poison and engine.idle for engine in engines)
        excused = self.per_pair * (1 + sum(not engine.idle for engine in engines))
        return others + max(0, searching - SEARCH_STEPS * others) + max(0, idle_poison - excused)
