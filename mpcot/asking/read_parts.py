"""Reads the parts that workers wrote, whichever version of this code wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.base.tables import conformed, parquet_files
from mpcot.records import ANSWER


def parts_with_keys(parts: Path) -> list[Path]:
    """Return the parts in a folder, or the one part, that say whose answers they hold."""
    needed = {field.name for field in ANSWER if not field.nullable}
    return [path for path in parquet_files(parts) if needed <= {*pq.read_schema(path).names}]


def answers_in(parts: Path, columns: Sequence[str] = ANSWER.names, batch: int = 1024) -> Iterator[pa.RecordBatch]:
    """Yield the answers of a part or of a folder of them, `batch` rows at a time.

    Columns that another version did not write are null, and those that it alone knew are left out, so that what was
    paid for still counts. A file without keys holds no answers.
    """
    schema = pa.schema([ANSWER.field(name) for name in columns])
    for path in parquet_files(parts):
        with pq.ParquetFile(path) as file:
            written = [name for name in columns if name in file.schema_arrow.names]
            if any(field.name not in written and not field.nullable for field in schema):
                continue
            for found in file.iter_batches(batch, columns=written):
                yield from conformed([found], schema).to_batches()
