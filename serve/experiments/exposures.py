"""Exposures say which arm answered which request; they are appended as parquet parts that are whole or absent."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.base.errors import UserError
from cluster.base.tables import check_writable, parquet_files, read_table, write_table
from serve.experiments.assign import unit_digest
from serve.experiments.config import Arm, ExperimentSettings

log = logging.getLogger("ray.serve.exposures")

# exposures folder -> `broadfast experiment report`. `share` is the arm's as planned; `scores` are in the order of
# `products`. Rows of shadow arms have the same request id as the row of the arm that answered.
NEEDED = {"experiment": pa.string(), "request_id": pa.string(), "unit": pa.string(), "arm": pa.string()}
NEEDED |= {"share": pa.float64(), "shadow": pa.bool_(), "at": pa.timestamp("us", tz="UTC")}
EXPOSURE = pa.schema(
    [
        *(pa.field(name, kind, nullable=False) for name, kind in NEEDED.items()),
        pa.field("products", pa.list_(pa.string())),
        pa.field("scores", pa.list_(pa.float32())),
    ]
)


class ExposureLog:
    """Appends exposures to a folder from any number of threads; other processes may write to the same folder.

    Rows wait in memory until there are `flush_rows` of them or the oldest has waited `flush_seconds`. `close` writes
    the rest; a process that is killed loses them. Rows that cannot be written are kept and tried again, up to
    `max_waiting` of them. Beyond that the oldest are lost and counted in `lost`.

    Raises:
        UserError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, experiment: ExperimentSettings) -> None:
        check_writable(folder)
        self.folder, self.experiment = folder, experiment
        self.writer, self.parts = uuid.uuid4().hex[:12], 0
        self.waiting: deque[dict[str, Any]] = deque()
        self.lost = 0
        self.lock, self.writing = threading.Lock(), threading.Lock()
        self.closed, self.wake = threading.Event(), threading.Event()
        self.failure: UserError | None = None
        self.timer = threading.Thread(target=self._flush_regularly, name="exposures", daemon=True)
        self.timer.start()

    def append(
        self, request_id: str, unit_id: str, arm: Arm, products: Sequence[str] = (), scores: Sequence[float] = ()
    ) -> None:
        """Record that `arm` answered a request or, as a shadow, scored it. This never waits for a disk."""
        assert not self.closed.is_set(), "an exposure after close would be lost"
        row = {
            "experiment": self.experiment.name,
            "request_id": request_id,
            "unit": unit_digest(self.experiment, unit_id),
            "arm": arm.name,
            "share": arm.share,
            "shadow": arm.shadow,
            "at": datetime.now(UTC),
            "products": list(products),
            "scores": list(scores),
        }
        with self.lock:
            self.waiting.append(row)
            self._bound()
            full = len(self.waiting) >= self.experiment.flush_rows
        if full and self.failure is None:  # on a full disk, the timer makes the next try
            self.wake.set()

    def flush(self) -> None:
        """Write the rows that wait as one part.

        Raises:
            UserError: they cannot be written; they are kept for the next try.
        """
        with self.writing:
            with self.lock:
                rows, self.waiting = list(self.waiting), deque()
            if not rows:
                return
            try:
                name = f"{self.writer}-{self.parts:06d}.parquet"
                write_table(self.folder / name, pa.Table.from_pylist(rows, EXPOSURE))
                self.parts += 1
            except UserError:
                with self.lock:
                    self.waiting.extendleft(reversed(rows))
                    self._bound()
                raise

    def _bound(self) -> None:
        while len(self.waiting) > self.experiment.max_waiting:
            self.waiting.popleft()
            self.lost += 1

    def close(self) -> None:
        """Write the rest and stop; calling it twice does no harm.

        Raises:
            UserError: the rest cannot be written.
        """
        self.closed.set()
        self.wake.set()
        self.timer.join()
        self.flush()

    def _flush_regularly(self) -> None:
        """Flush again and again, and keep in `failure` what went wrong: no request must fail over a full disk."""
        while not self.closed.is_set():
            self.wake.wait(self.experiment.flush_seconds)
            self.wake.clear()
            try:
                self.flush()
                self.failure = None
            except UserError as error:
                if self.failure is None:
                    log.error("exposures wait in memory: %s", error)
                self.failure = error


def read_exposures(path: Path, columns: Sequence[str] = tuple(EXPOSURE.names)) -> pa.Table:
    """Return the exposures of a folder of parts or of one file; most of their size is in products and scores.

    Raises:
        UserError: there are no exposures, or the file holds something else.
    """
    parts = parquet_files(path) if path.exists() else []
    there = pq.read_schema(parts[0]).names if parts else []
    missing = [name for name in EXPOSURE.names if name not in there]
    if missing:
        why = "no parquet part is there" if not there else f"columns are missing: {', '.join(missing)}"
        raise UserError(f"{path} holds no exposures ({why}). Give the folder that the service wrote.")
    return read_table(path, list(columns)).select(list(columns))
