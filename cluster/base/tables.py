"""Reading and writing tables so that a file is either whole or absent."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from cluster.base.whole_files import disk_error, whole_file


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


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Yield a writer of tables; the file is there, synced and whole, when the block ends well.

    Raises:
        UserError: the disk is full, read-only or closed to this user.
    """
    with whole_file(path) as partial, partial.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            yield writer
        file.flush()
        os.fsync(file.fileno())


def parquet_files(path: Path) -> list[Path]:
    """Return the one parquet file, or all whole ones of a folder (names ending in `.parquet`), sorted."""
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read one parquet file or all whole ones of a folder (names ending in `.parquet`)."""
    if path.is_dir():
        files = [str(p) for p in parquet_files(path)]
        return pads.dataset(files, format="parquet").to_table(columns=columns) if files else pa.table({})
    return pq.read_table(path, columns=columns)


def wide(table: pa.Table) -> pa.Table:
    """Return the table with texts of 64-bit offsets: `take` joins a column's chunks, and 2 GiB overflow 32 bits."""
    fields = [f.with_type(pa.large_string()) if pa.types.is_string(f.type) else f for f in table.schema]
    return table.cast(pa.schema(fields))


def batches_of(path: Path, columns: list[str] | None = None, batch: int = 1024) -> Iterator[pa.RecordBatch]:
    """Yield a parquet file, or a folder's one after the other, as record batches: `batch` rows in memory at a time."""
    for name in parquet_files(path):
        with pq.ParquetFile(name) as file:
            yield from file.iter_batches(batch_size=batch, columns=columns)


def rows_of(path: Path, columns: list[str] | None = None, batch: int = 1024) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file or folder as dicts, `batch` rows in memory at a time."""
    for chunk in batches_of(path, columns, batch):
        yield from chunk.to_pylist()


def values_of(path: Path, column: str, batch: int = 65536) -> Iterator[list[Any]]:
    """Yield one column of a parquet file or folder, `batch` values at a time."""
    for chunk in batches_of(path, [column], batch):
        yield chunk[column].to_pylist()


def check_writable(folder: Path) -> None:
    """Write and remove a probe file, so that a run fails before its first model loads.

    Raises:
        UserError: the folder cannot be made or written.
    """
    probe = folder / f".probe-{uuid.uuid4().hex}"  # others may check the same folder at the same time
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"broadfast")
        probe.unlink()
    except OSError as error:
        raise disk_error(error, folder) from error
