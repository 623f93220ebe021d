"""Reads and writes tables, so that a file is either whole or absent."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from cluster.base.whole_files import disk_error, synced_file

GROUP_BYTES = 32 * 2**20  # of memory: a file of small row groups is slow to read, and its writer remembers each


class GroupedWriter(pq.ParquetWriter):  # type: ignore[misc]
    """Gathers the tables that it is given into row groups of at least `GROUP_BYTES`."""

    def __init__(self, *args: Any, **more: Any) -> None:
        self.waiting: list[pa.Table] = []
        self.bytes = 0
        super().__init__(*args, **more)

    def write_table(self, table: pa.Table, row_group_size: int | None = None) -> None:
        """Add rows, which are written with those that wait once they are enough."""
        self.waiting.append(table)
        self.bytes += table.nbytes
        if self.bytes >= GROUP_BYTES:
            self._write_waiting()

    def _write_waiting(self) -> None:
        rows, self.waiting, self.bytes = pa.concat_tables(self.waiting), [], 0
        super().write_table(rows)

    def close(self) -> None:
        """Write what waits, and end the file."""
        try:
            if self.waiting:
                self._write_waiting()
        finally:
            super().close()


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Yield a writer of tables; the file is there, whole and synced, once the block has ended well.

    Raises:
        UserError: the disk is full or read-only, or this user may not write to it.
    """
    with synced_file(path) as file, GroupedWriter(file, schema, compression="zstd") as writer:
        yield writer


def write_table(path: Path, table: pa.Table) -> Path:
    """Write a parquet file that is whole or absent, and return its path; it raises as `table_writer` does."""
    with table_writer(path, table.schema) as writer:
        writer.write_table(table)
    return path


def parquet_files(path: Path) -> list[Path]:
    """Return the one parquet file, or all whole ones of a folder, whose names end in `.parquet`, sorted."""
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read one parquet file, or all whole ones of a folder."""
    if path.is_dir():
        files = [str(p) for p in parquet_files(path)]
        return pads.dataset(files, format="parquet").to_table(columns=columns) if files else pa.table({})
    return pq.read_table(path, columns=columns)


def wide(table: pa.Table) -> pa.Table:
    """Return the table with 64-bit offsets of texts: `take` joins a column's chunks, and 2 GiB overflow 32 bits."""
    fields = [f.with_type(pa.large_string()) if pa.types.is_string(f.type) else f for f in table.schema]
    return table.cast(pa.schema(fields))


def conformed(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """Return the columns of a schema as one table; those that the batches lack are null."""
    tables = [
        pa.Table.from_batches([batch.select([n for n in schema.names if n in batch.schema.names])]) for batch in batches
    ]
    return (
        pa.concat_tables([*tables, schema.empty_table()], promote_options="permissive")
        .select(schema.names)
        .cast(schema)
    )


def table_of(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table, of which only some at a time are Python objects."""
    stream, tables = iter(rows), [schema.empty_table()]
    while some := list(islice(stream, 8192)):
        tables.append(pa.Table.from_pylist(some, schema))
    return pa.concat_tables(tables)


def rows_in(table: pa.Table, batch: int = 1024) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as dicts, of which `batch` are there at a time."""
    for some in table.to_batches(max_chunksize=batch):
        yield from some.to_pylist()


def batches_of(path: Path, columns: list[str] | None = None, batch: int = 1024) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of a parquet file or folder, with `batch` rows in memory at a time."""
    for name in parquet_files(path):
        with pq.ParquetFile(name) as file:
            yield from file.iter_batches(batch_size=batch, columns=columns)


def rows_of(path: Path, columns: list[str] | None = None, batch: int = 1024) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file or folder as dicts, with `batch` rows in memory at a time."""
    for chunk in batches_of(path, columns, batch):
        yield from chunk.to_pylist()


def values_of(path: Path, column: str, batch: int = 65536) -> Iterator[list[Any]]:
    """Yield one column of a parquet file or folder, `batch` values at a time."""
    for chunk in batches_of(path, [column], batch):
        yield chunk[column].to_pylist()


def check_writable(folder: Path) -> None:
    """Write and remove a probe file, so that a run fails before its first model loads.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    probe = folder / f".probe-{uuid.uuid4().hex}"  # other processes may check the same folder at the same time
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"broadfast")
        probe.unlink()
    except OSError as error:
        raise disk_error(error, folder) from error
