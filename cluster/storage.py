"""Reading and writing tables so that a file is either whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from cluster.files import disk_error, whole_file


def write_table(path: Path, table: pa.Table) -> Path:
    """Write a parquet file under a partial name, sync it and rename it.

    Raises:
        UserError: the disk is full, read-only or closed to this user.
    """
    with whole_file(path) as partial, partial.open("wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
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
