"""Writes answers to parquet files, called parts, and finds what a worker that died had already written."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from cluster.base.id_sets import IdSet
from cluster.base.shared_folder import SharedFolder
from mpcot.asking.engines.config import Replicas
from mpcot.asking.join_answers import engine_failed
from mpcot.records import ANSWER

CLOCKS_DIFFER_S = 5.0


class PartWriter:
    """Writes answers to numbered parts, each as soon as it has enough rows or is old enough."""

    def __init__(self, store: SharedFolder, worker: str, bounds: Replicas) -> None:
        self.store, self.worker, self.bounds = store, worker, bounds
        self.rows: list[dict[str, Any]] = []
        self.number = 0
        self.flushed = time.monotonic()

    def add(self, row: dict[str, Any]) -> None:
        """Add an answer."""
        self.rows.append(row)
        if len(self.rows) >= self.bounds.flush_rows:
            self.flush()
        else:
            self.flush_old()

    def flush_old(self) -> None:
        """Write the answers that have waited long enough. Call it from time to time even if no answer comes."""
        if time.monotonic() - self.flushed >= self.bounds.flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Write all answers that wait."""
        self.flushed = time.monotonic()
        if not self.rows:
            return
        # If this fails, for instance on a full disk, the rows are kept: the next try may find room.
        rows = pa.Table.from_pylist(self.rows, ANSWER)
        self.store.write_table(f"{self.worker}-{self.number:06d}.parquet", rows)
        self.rows = []
        self.number += 1


class Tries:
    """Remembers which workers have begun which files of missing requests.

    When a worker dies, Ray gives its files to another one. What the first had already written must not be asked, and
    paid for, again.
    """

    def __init__(self, store: SharedFolder, answers: SharedFolder, worker: str) -> None:
        self.store, self.answers, self.worker = store, answers, worker
        self.begun: set[str] = set()

    def begin(self, files: Iterable[str]) -> IdSet:
        """Note that this worker begins `files`, and return the keys that others have answered since they did."""
        earlier: dict[str, float] = {}
        for name in set(files):
            place = self.store.child(name)
            if name not in self.begun:  # a second mark would hide what was answered before it
                place.touch(self.worker)
                self.begun.add(name)
            for other in place.files():
                if other.name != self.worker:
                    earlier[other.name] = min(other.modified_s, earlier.get(other.name, other.modified_s))
        return IdSet(self._written(earlier))

    def _written(self, earlier: dict[str, float]) -> Iterator[list[str]]:
        if not earlier:
            return
        for part in self.answers.files(".parquet"):
            began = earlier.get(part.name.rpartition("-")[0])
            if began is not None and part.modified_s >= began - CLOCKS_DIFFER_S:
                for batch in self.answers.batches(part.name, ["key", "reason"]):
                    own = zip(batch["key"].to_pylist(), engine_failed(batch["reason"]).to_pylist(), strict=True)
                    yield [key for key, failed in own if not failed]
