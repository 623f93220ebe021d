"""Rows that replicas write into a folder all the time, kept as parquet parts that are whole or absent.

The parts of an hour are in a folder of its name, such as `hour=2026-11-30T23`. A process writes a small part whenever
rows have waited long enough, so that a kill loses little, and joins its small parts into one every ten minutes.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from cluster.base.errors import UserError
from cluster.base.tables import check_writable, read_table, write_table
from cluster.base.whole_files import disk_error
from serve.parts.config import PartSettings

log = logging.getLogger("ray.serve.parts")
HOUR = "hour=%Y-%m-%dT%H"
Read = TypeVar("Read")
READS = 5  # tries to read a folder in which parts are joined
SMALL = "-small-"  # in the name of a part that is to be joined with others into that of the text before


class PartLog:
    """Appends rows to a folder from any number of threads; other processes may write to the same folder.

    Rows wait in memory until there are `flush_rows` of them or the oldest has waited `flush_seconds`. `close` writes
    the rest; a process that is killed loses them. Rows that cannot be written are kept and tried again, up to
    `max_waiting` of them. Beyond that the oldest are lost and counted in `lost`.

    Args:
        name: what the rows are called in messages.
        on_lost: is called with the number of rows whenever some are lost.

    Raises:
        UserError: the folder cannot be made or written.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        settings: PartSettings,
        name: str,
        on_lost: Callable[[int], None] | None = None,
    ) -> None:
        check_writable(folder)
        self.folder, self.schema, self.settings, self.name, self.on_lost = folder, schema, settings, name, on_lost
        self.writer, self.parts = uuid.uuid4().hex[:12], 0
        self.small: list[Path] = []
        self.rows, self.began = 0, time.monotonic()
        self.waiting: deque[dict[str, Any]] = deque()
        self.lost = 0
        self.lock, self.writing = threading.Lock(), threading.Lock()
        self.closed, self.wake = threading.Event(), threading.Event()
        self.failure: Exception | None = None
        self.timer = threading.Thread(target=self._flush_regularly, name=name, daemon=True)
        self.timer.start()

    def extend(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows of the schema. This never waits for a disk."""
        assert not self.closed.is_set(), "a row after close would be lost"
        with self.lock:
            self.waiting.extend(rows)
            self._bound()
            full = len(self.waiting) >= self.settings.flush_rows
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
                    write_table(path, self._table(rows))
                    self.small.append(path)
                    self.rows += len(rows)
            except UserError:
                with self.lock:
                    self.waiting.extendleft(reversed(rows))
                    self._bound()
                raise
            waited = time.monotonic() - self.began
            if self.rows >= self.settings.part_rows or waited >= self.settings.part_seconds:
                self._join()

    def _table(self, rows: list[dict[str, Any]]) -> pa.Table:
        try:
            return pa.Table.from_pylist(rows, self.schema)
        except UnicodeEncodeError:  # the name of an attribute may hold half of a surrogate pair
            return pa.Table.from_pylist([_encodable(row) for row in rows], self.schema)

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
        over = max(0, len(self.waiting) - self.settings.max_waiting)
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
        path = Path(tempfile.gettempdir()) / f"broadfast-{self.writer}" / f"{self.name.replace(' ', '-')}.parquet"
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # others must not read what shoppers typed
        except OSError as failed:
            raise disk_error(failed, path.parent) from failed
        write_table(path, self._table(rows))
        return UserError(f"{error} {len(rows)} {self.name} are in {path}: move it into {self.folder}.")

    def _flush_regularly(self) -> None:
        """Flush again and again, and keep in `failure` what went wrong: no request must fail over a full disk."""
        while not self.closed.is_set():
            self.wake.wait(self.settings.flush_seconds)
            self.wake.clear()
            try:
                self.flush()
                self.failure = None
            except Exception as error:  # whatever it is, the log must go on
                if self.failure is None:
                    log.error("%s wait in memory: %s", self.name, error, exc_info=not isinstance(error, UserError))
                self.failure = error


def _encodable(value: Any) -> Any:
    """Return the value with a question mark in place of each half of a surrogate pair."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(each) for key, each in value.items()}
    return [_encodable(each) for each in value] if isinstance(value, list) else value


def parts_of(path: Path, since: datetime | None = None) -> list[Path]:
    """Return the parts of a folder, or the one file, without those of hours that ended before `since`."""
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


def open_parts(path: Path, schema: pa.Schema, name: str, since: datetime | None = None) -> pads.Dataset:
    """Return the rows of a folder or of one file, of which nothing is read yet.

    Args:
        name: what the rows are called in messages.

    Raises:
        UserError: there are no rows, or the file holds something else.
    """
    parts = parts_of(path, since)
    there = pq.read_schema(parts[0]).names if parts else []
    missing = [column for column in schema.names if column not in there]
    if missing:
        when = f" since {since:%Y-%m-%d %H:%M}" if since else ""
        why = f"no parquet part{when} is there" if not there else f"columns are missing: {', '.join(missing)}"
        raise UserError(f"{path} holds no {name} ({why}). Give the folder that the service wrote.")
    return pads.dataset([str(part) for part in parts], format="parquet", schema=schema)


def undisturbed(read: Callable[[], Read]) -> Read:
    """Return what `read` returns, which opens and reads parts: again where a replica joined some of them meanwhile.

    Raises:
        FileNotFoundError: parts have vanished at each of several tries.
    """
    for _ in range(READS - 1):
        with suppress(FileNotFoundError):
            return read()
    return read()
