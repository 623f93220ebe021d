"""Requests that may have stopped an engine: asked again among fewer, at last alone, so that the others go on.

One prompt that ends its engine each time would else end every engine that Ray starts in its place. Of many in flight
nobody knows which it was, so those of an engine that stopped are asked anew in groups of `FEW`, then one by one. Who
stops two engines alone is found guilty: four engines find one prompt among two thousand.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pyarrow as pa

from cluster.base.shared_folder import Store

ROOM = 2048  # requests in one engine at a time
FEW = 32
STEPS = 2  # from all that an engine was asked to few, from few to one
STOP = pa.schema(
    [pa.field("key", pa.string()), pa.field("guilty", pa.bool_(), nullable=False), pa.field("idle", pa.bool_())]
)


class Gate:
    """Lets requests into an engine, in order, as long as there is room; one may take the room of many."""

    def __init__(self, room: int = ROOM) -> None:
        self.room = room
        self.turn = asyncio.Lock()
        self.freed = asyncio.Event()

    @asynccontextmanager
    async def seat(self, room: int) -> AsyncIterator[None]:
        """Wait for `room` and hold it; who leaves by an exception keeps it, so that nobody enters a stopped engine."""
        async with self.turn:  # nobody passes one who needs much
            while self.room < room:
                self.freed.clear()
                await self.freed.wait()
            self.room -= room
        yield
        self.room += room
        self.freed.set()


@dataclass(frozen=True)
class Stop:
    """An engine that stopped, and what it was asked then.

    `guilty`: it worked, and the one request had stopped another engine. `idle`: it had answered no request before.
    """

    keys: frozenset[str]
    guilty: bool
    idle: bool


class Suspects:
    """What the engines of a run were asked when they stopped, as all its workers know it: a file per engine.

    Args:
        in_a_row: how many guilty requests may come one after the other: those of one pair lie side by side.
    """

    def __init__(self, store: Store, worker: str, in_a_row: int) -> None:
        self.store, self.worker, self.in_a_row = store, worker, in_a_row
        self.stops: dict[str, Stop] = {}

    def read(self) -> None:
        """Take in what other workers have noted since."""
        for entry in self.store.files(".parquet"):
            if entry.name not in self.stops:
                rows = [row for batch in self.store.batches(entry.name) for row in batch.to_pylist()]
                keys = frozenset(row["key"] for row in rows if row["key"] is not None)
                self.stops[entry.name] = Stop(keys, rows[0]["guilty"], rows[0]["idle"])

    def room(self, key: str) -> int:
        """Return how much of an engine's room a request takes: more, the fewer it was among when one stopped."""
        among = min((len(stop.keys) for stop in self.stops.values() if key in stop.keys), default=None)
        if among is None:
            return 1
        return ROOM // FEW if among > FEW else ROOM

    def blamed(self, key: str) -> int:
        """Return how many engines stopped while they were asked this request."""
        return sum(key in stop.keys for stop in self.stops.values())

    @property
    def convicted(self) -> int:
        """How many requests were found guilty."""
        return sum(stop.guilty for stop in self.stops.values())

    def alone(self, key: str) -> bool:
        """Return whether an engine stopped that was asked this request alone."""
        return any(stop.keys == {key} for stop in self.stops.values())

    def blame(self, keys: Sequence[str], guilty: bool, idle: bool) -> int:
        """Note what this worker's engine was asked when it stopped; return how many restarts that makes.

        Engines that a guilty request stopped do not count, nor do `STEPS` for each of the others that narrow down what
        it was asked. But where guilty requests follow one another and no engine answers anything between them, more of
        them than `in_a_row` count: that is the engine's fault.
        """
        asked: Sequence[str | None] = keys or [None]
        rows = [{"key": key, "guilty": guilty, "idle": idle} for key in asked]
        self.store.write_table(f"{self.worker}.parquet", pa.Table.from_pylist(rows, STOP))
        self.read()
        stops = list(self.stops.values())
        found = frozenset(key for stop in stops if stop.guilty for key in stop.keys)
        left = [stop.keys for stop in stops if not stop.keys & found]
        narrowed = {own for own in left if own and own <= _union(other for other in left if len(other) > len(own))}
        idly = sum(stop.guilty and stop.idle for stop in stops)
        excused = self.in_a_row * (1 + sum(not stop.idle for stop in stops))
        others = len(left) - len(narrowed)
        return others + max(0, len(narrowed) - STEPS * others) + max(0, idly - excused)


def _union(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*sets)
