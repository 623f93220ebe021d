"""SQL over parquet files and Arrow tables by DuckDB, in a bounded amount of memory: what has no room goes to disk."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from cluster.base.errors import UserError
from cluster.base.tables import parquet_files

MEMORY_MIB = 1024
MOST_THREADS = 4  # each wants memory of its own, which several sorts of long texts share
ROWS = 16384


class Database:
    """Queries in a database that holds nothing itself. Results come as record batches, some rows at a time."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection

    def stream(self, query: str, **tables: Any) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a query. `tables` are what it may name: Arrow tables, readers, or lists of parquet files.

        Each stream has a connection of its own, so that several can be read side by side.
        """
        cursor = self.connection.cursor()
        for name, table in tables.items():
            if isinstance(table, list):
                cursor.execute(f"CREATE TEMP VIEW {name} AS FROM {scan(*table)}")
            else:
                cursor.register(name, table)
        yield from cursor.sql(query).to_arrow_reader(ROWS)

    def in_order(self, paths: Sequence[Path], by: str, columns: Sequence[str], where: str = "true") -> Ordered:
        """Return rows of parquet files in the order of a column, and of equal ones in that of the files."""
        names = ", ".join(f'"{name}"' for name in columns)
        parts = (
            f"SELECT {names}, {number} AS number, file_row_number AS place FROM {scan(path)} WHERE {where}"
            for number, path in enumerate(paths)
        )
        return Ordered(self.stream(f"{' UNION ALL '.join(parts)} ORDER BY {by}, number, place"), by)

    def rows(self, query: str, **tables: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query that has few."""
        return [tuple(row.values()) for batch in self.stream(query, **tables) for row in batch.to_pylist()]

    def value(self, query: str, **tables: Any) -> Any:
        """Return the one value of a query that has one row and column."""
        ((found,),) = self.rows(query, **tables)
        return found


def quoted(texts: Iterable[str]) -> str:
    """Return texts as SQL that lists them."""
    return ", ".join("'" + text.replace("'", "''") + "'" for text in texts)


def scan(*paths: Path) -> str:
    """Return the SQL that reads parquet files and folders of them, with `filename` and `file_row_number` as columns.

    There must be a file at least.
    """
    names = quoted(str(file) for path in paths for file in parquet_files(path))
    return f"read_parquet([{names}], union_by_name = true, filename = true, file_row_number = true)"


@contextmanager
def database(scratch: Path) -> Iterator[Database]:
    """Yield a database that writes what has no room in memory into a folder in `scratch`, and removes it at the end.

    Raises:
        UserError: the disk is full or cannot be written to.
    """
    spilled = scratch / f"sql-{uuid.uuid4().hex}.partial"
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    settings: dict[str, Any] = {"memory_limit": f"{MEMORY_MIB}MiB", "threads": threads, "temp_directory": str(spilled)}
    # Where order matters, a query says so; to keep it everywhere takes memory.
    connection = duckdb.connect(config=settings | {"preserve_insertion_order": False})
    try:
        yield Database(connection)
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise UserError(f"cannot sort or join in {scratch}: {error}. Free some space, and run it again.") from error
    finally:
        connection.close()
        shutil.rmtree(spilled, ignore_errors=True)


class Ordered:
    """A stream of record batches in the order of a column, from which rows are taken up to a value at a time."""

    def __init__(self, batches: Iterable[pa.RecordBatch], column: str) -> None:
        self.batches, self.column = iter(batches), column
        self.held: pa.RecordBatch | None = next(self.batches, None)

    def chunks(self) -> Iterator[tuple[list[pa.RecordBatch], Any]]:
        """Yield all rows that are left, some at a time, with the last value of each time."""
        while self.held is not None:
            last = self.held[self.column][-1].as_py()
            yield self.upto(last), last

    def upto(self, last: Any) -> list[pa.RecordBatch]:
        """Return the next rows whose value is at most `last`."""
        taken: list[pa.RecordBatch] = []
        while self.held is not None:
            count = pc.sum(pc.less_equal(self.held[self.column], last)).as_py() or 0
            taken.append(self.held.slice(0, count))
            if count < len(self.held):
                self.held = self.held.slice(count)
                break
            self.held = next(self.batches, None)
        return taken
