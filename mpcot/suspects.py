"""Requests that may have stopped an engine: asked again among fewer, at last alone, so that the others go on.

One prompt that ends its engine each time would else end every engine that Ray starts in its place. Of many in flight
nobody knows which it was, so those of an engine that stopped are asked anew in groups of `FEW`, then one by one. Who
stops two engines alone is found guilty: four engines find one prompt among two thousand.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pyarrow as pa

from cluster.store import Store

ROOM = 2048  # requests in one engine at a time
FEW = 32
STOPPED = pa.schema([pa.field("key", pa.string()), pa.field("guilty", pa.bool_())])


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
    """An engine that stopped, and what it was asked then. `guilty`: it worked, and the one request stopped another."""

    keys: frozenset[str]
    guilty: bool


class Suspects:
    """What the engines of a run were asked when they stopped, as all its workers know it: a file per engine."""

    def __init__(self, store: Store, worker: str) -> None:
        self.store, self.worker = store, worker
        self.stops: dict[str, Stop] = {}

    def read(self) -> None:
        """Take in what other workers have noted since."""
        for entry in self.store.files(".parquet"):
            if entry.name not in self.stops:
                rows = [row for batch in self.store.batches(entry.name) for row in batch.to_pylist()]
                self.stops[entry.name] = Stop(frozenset(row["key"] for row in rows), any(row["guilty"] for row in rows))

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

    def blame(self, keys: Sequence[str], guilty: bool) -> int:
        """Note what this worker's engine was asked when it stopped; return how many stopped for no known request."""
        rows = [{"key": key, "guilty": guilty} for key in keys]
        self.store.write_table(f"{self.worker}.parquet", pa.Table.from_pylist(rows, STOPPED))
        self.read()
        found = frozenset(key for stop in self.stops.values() if stop.guilty for key in stop.keys)
        return sum(not stop.keys & found for stop in self.stops.values())
