"""Exposures say which arm answered which request; they are kept as parquet parts that are whole or absent.

The parts of an hour are in a folder of its name, such as `hour=2026-11-30T23`. A process writes a small part whenever
exposures have waited long enough, so that a kill loses little, and joins its small parts into one every ten minutes.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from cluster.base.errors import UserError
from cluster.base.tables import check_writable, read_table, write_table
from serve.experiments.assign import unit_digest, unit_secret
from serve.experiments.config import Arm, ExperimentSettings

log = logging.getLogger("ray.serve.exposures")

# exposures folder -> `broadfast experiment report`. `share` is the arm's as planned; `scores` are in the order of
# `products`. Rows of shadow arms have the same request id as the row of the arm that answered.
NEEDED = {"experiment": pa.string(), "request_id": pa.string(), "unit": pa.string(), "arm": pa.string()}
NEEDED |= {"model": pa.string(), "share": pa.float64(), "shadow": pa.bool_(), "at": pa.timestamp("us", tz="UTC")}
EXPOSURE = pa.schema(
    [
        *(pa.field(name, kind, nullable=False) for name, kind in NEEDED.items()),
        pa.field("products", pa.list_(pa.string())),
        pa.field("scores", pa.list_(pa.float32())),
    ]
)
HOUR = "hour=%Y-%m-%dT%H"
SMALL = "-small-"  # in the name of a part that is to be joined with others into that of the text before


class ExposureLog:
    """Appends exposures to a folder from any number of threads; other processes may write to the same folder.

    Rows wait in memory until there are `flush_rows` of them or the oldest has waited `flush_seconds`. `close` writes
    the rest; a process that is killed loses them. Rows that cannot be written are kept and tried again, up to
    `max_waiting` of them. Beyond that the oldest are lost and counted in `lost`.

    Args:
        on_lost: is called with the number of rows whenever some are lost.

    Raises:
        UserError: the folder cannot be made or written.
    """

    def __init__(
        self, folder: Path, experiment: ExperimentSettings, on_lost: Callable[[int], None] | None = None
    ) -> None:
        check_writable(folder)
        self.folder, self.experiment, self.on_lost = folder, experiment, on_lost
        self.secret = unit_secret(folder, experiment)
        self.writer, self.parts = uuid.uuid4().hex[:12], 0
        self.small: list[Path] = []
        self.rows, self.began = 0, time.monotonic()
        self.waiting: deque[dict[str, Any]] = deque()
        self.lost = 0
        self.lock, self.writing = threading.Lock(), threading.Lock()
        self.closed, self.wake = threading.Event(), threading.Event()
        self.failure: UserError | None = None
        self.timer = threading.Thread(target=self._flush_regularly, name="exposures", daemon=True)
        self.timer.start()

    def append(
        self,
        request_id: str,
        unit_id: str,
        arm: Arm,
        products: Sequence[str] = (),
        scores: Sequence[float] = (),
        model: str = "",
    ) -> None:
        """Record that `arm` answered a request by `model` or, as a shadow, scored it. This never waits for a disk."""
        assert not self.closed.is_set(), "an exposure after close would be lost"
        row = {
            "experiment": self.experiment.name,
            "request_id": request_id,
            "unit": unit_digest(self.secret, unit_id),
            "arm": arm.name,
            "model": model,
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
        """Write the rows that wait as a small part, and join the small parts where it is time.

        Raises:
            UserError: they cannot be written; they are kept for the next try.
        """
        with self.writing:
            with self.lock:
                rows, self.waiting = list(self.waiting), deque()
            try:
                if rows:
                    name = f"{self.writer}-{self.parts:06d}{SMALL}{len(self.small):06d}.parquet"
                    path = self._hour() / name
                    write_table(path, pa.Table.from_pylist(rows, EXPOSURE))
                    self.small.append(path)
                    self.rows += len(rows)
            except UserError:
                with self.lock:
                    self.waiting.extendleft(reversed(rows))
                    self._bound()
                raise
            waited = time.monotonic() - self.began
            if self.rows >= self.experiment.part_rows or waited >= self.experiment.part_seconds:
                self._join()

    def _hour(self) -> Path:
        """Return the folder of this hour, or that of the small parts that the next one is joined with."""
        return self.small[0].parent if self.small else self.folder / datetime.now(UTC).strftime(HOUR)

    def _join(self) -> None:
        """Join the small parts into one. Whoever reads meanwhile leaves them out once the one is there."""
        if self.small:
            table = pa.concat_tables(read_table(path) for path in self.small)
            write_table(self.small[0].with_name(f"{self.writer}-{self.parts:06d}.parquet"), table)
            for path in self.small:
                path.unlink(missing_ok=True)
        self.small, self.rows, self.parts, self.began = [], 0, self.parts + 1, time.monotonic()

    def _bound(self) -> None:
        over = max(0, len(self.waiting) - self.experiment.max_waiting)
        for _ in range(over):
            self.waiting.popleft()
        self.lost += over
        if over and self.on_lost:
            self.on_lost(over)

    def close(self) -> None:
        """Write the rest and stop; calling it twice does no harm.

        Raises:
            UserError: the rest cannot be written. It is in a file that the message names, unless that fails as well.
        """
        self.closed.set()
        self.wake.set()
        self.timer.join()
        try:
            self.flush()
            self._join()
        except UserError as error:
            raise self._aside(error) from error

    def _aside(self, error: UserError) -> UserError:
        """Write what waits to this machine's folder for temporary files, and return the error that names it."""
        with self.lock:
            rows, self.waiting = list(self.waiting), deque()
        if not rows:
            return error
        path = Path(tempfile.gettempdir()) / f"broadfast-exposures-{self.writer}.parquet"
        write_table(path, pa.Table.from_pylist(rows, EXPOSURE))
        return UserError(f"{error} {len(rows)} exposures are in {path}: move it into {self.folder}.")

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


def exposure_parts(path: Path, since: datetime | None = None) -> list[Path]:
    """Return the parts of a folder of exposures, or the one file, without those of hours that ended before `since`."""
    if not path.is_dir():
        return [path] if path.exists() else []
    found = set(path.rglob("*.parquet"))
    # A part lies in the hour of its first row, and later ones may be of the next.
    first = (since.astimezone(UTC) - timedelta(hours=1)).strftime(HOUR) if since else ""
    return sorted(
        part
        for part in found
        # A small part counts no more once the one is there into which it was joined.
        if (SMALL not in part.name or part.with_name(part.name.partition(SMALL)[0] + ".parquet") not in found)
        and not (part.parent.name.startswith("hour=") and part.parent.name < first)
    )


def open_exposures(path: Path, since: datetime | None = None) -> pads.Dataset:
    """Return the exposures of a folder or of one file, of which nothing is read yet.

    Raises:
        UserError: there are no exposures, or the file holds something else.
    """
    parts = exposure_parts(path, since)
    there = pq.read_schema(parts[0]).names if parts else []
    missing = [name for name in EXPOSURE.names if name not in there]
    if missing:
        why = "no parquet part is there" if not there else f"columns are missing: {', '.join(missing)}"
        raise UserError(f"{path} holds no exposures ({why}). Give the folder that the service wrote.")
    return pads.dataset([str(part) for part in parts], format="parquet", schema=EXPOSURE)


def read_exposures(path: Path, columns: Sequence[str] = tuple(EXPOSURE.names)) -> pa.Table:
    """Return the exposures as a table; it raises as `open_exposures` does."""
    return open_exposures(path).to_table(columns=list(columns))
