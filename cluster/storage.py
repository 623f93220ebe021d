"""Reading and writing tables so that a file is either whole or absent."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from cluster.errors import UserError

DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "permission denied",
}


def disk_error(error: OSError, path: str | Path) -> UserError:
    """Return the message for a failed write; what was finished before stays and is used by a rerun."""
    why = DISK_ERRORS.get(error.errno or 0, str(error))
    return UserError(f"cannot write {path}: {why}. Free or change the place (--out) and run the same command again.")


def write_table(path: Path, table: pa.Table) -> Path:
    """Write a parquet file under a partial name, sync it and rename it.

    Raises:
        UserError: the disk is full, read-only or closed to this user.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise disk_error(error, path) from error
    return path


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read one parquet file or all whole ones of a folder (names ending in `.parquet`)."""
    if path.is_dir():
        files = sorted(str(p) for p in path.glob("*.parquet"))
        return pads.dataset(files, format="parquet").to_table(columns=columns) if files else pa.table({})
    return pq.read_table(path, columns=columns)


def rows_of(path: Path, columns: list[str] | None = None, batch: int = 1024) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file as dicts, `batch` rows in memory at a time."""
    with pq.ParquetFile(path) as file:
        for chunk in file.iter_batches(batch_size=batch, columns=columns):
            yield from chunk.to_pylist()


def check_writable(folder: Path) -> None:
    """Write and remove a probe file, so that a run fails before its first model loads.

    Raises:
        UserError: the folder cannot be made or written.
    """
    probe = folder / ".probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"broadfast")
        probe.unlink()
    except OSError as error:
        raise disk_error(error, folder) from error
