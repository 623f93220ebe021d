"""The parquet parts that workers append answers to, and what a worker that died had already written."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.ids import IdSet
from cluster.storage import batches_of, write_table
from mpcot.config import Replicas
from mpcot.records import ANSWER
from mpcot.shelves import engine_failed

CLOCKS_DIFFER_S = 5.0


class PartWriter:
    """Appends answers to numbered parts, bounded by rows and by seconds."""

    def __init__(self, folder: Path, worker: str, bounds: Replicas) -> None:
        self.folder, self.worker, self.bounds = folder, worker, bounds
        self.rows: list[dict[str, Any]] = []
        self.number = 0
        self.flushed = time.monotonic()
        os.makedirs(folder, exist_ok=True)

    def add(self, row: dict[str, Any]) -> None:
        """Take one answer; write the part when it is full or old enough."""
        self.rows.append(row)
        if len(self.rows) >= self.bounds.flush_rows:
            self.flush()
        else:
            self.flush_old()

    def flush_old(self) -> None:
        """Write what waits once it has waited long enough; called from time to time where no answer comes."""
        if time.monotonic() - self.flushed >= self.bounds.flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        self.flushed = time.monotonic()
        if not self.rows:
            return
        rows, self.rows = self.rows, []
        write_table(self.folder / f"{self.worker}-{self.number:06d}.parquet", pa.Table.from_pylist(rows, ANSWER))
        self.number += 1


class Tries:
    """Which workers began which file of missing requests.

    Ray hands a file anew to another worker when one dies. What the first one had written by then must not be
    asked, and paid for, again.
    """

    def __init__(self, folder: Path, answers: Path, worker: str) -> None:
        self.folder, self.answers, self.worker = folder, answers, worker

    def begin(self, files: Iterable[str]) -> IdSet:
        """Note that this worker begins `files`; return the keys that others answered since they began them."""
        earlier: dict[str, float] = {}
        for name in set(files):
            place = self.folder / name
            place.mkdir(parents=True, exist_ok=True)
            (place / self.worker).touch()
            for other in place.iterdir():
                if other.name != self.worker:
                    began = other.stat().st_mtime
                    earlier[other.name] = min(began, earlier.get(other.name, began))
        return IdSet(self._written(earlier))

    def _written(self, earlier: dict[str, float]) -> Iterator[list[str]]:
        for worker, began in earlier.items():
            for part in self.answers.glob(f"{worker}-*.parquet"):
                if part.stat().st_mtime < began - CLOCKS_DIFFER_S:
                    continue
                for batch in batches_of(part, ["key", "reason"]):
                    own = zip(batch["key"].to_pylist(), engine_failed(batch["reason"]).to_pylist(), strict=True)
                    yield [key for key, failed in own if not failed]
