"""Reads the file of `source.candidates`: pairs that nobody has labelled, which join the rows of any source."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mpcot.sources.clean_rows import Cleaning, SourceRows, make_row, rows_table
from mpcot.sources.config import COLUMNS, REQUIRED
from mpcot.sources.delimited import PARSE_ERROR
from mpcot.sources.filesets import FileSet, find, stream

FIELD = "source.candidates"
DECIDED = ("label", "split", "ratings")  # columns that a candidate cannot have: it follows its query
READ = tuple(name for name in COLUMNS if name not in DECIDED)


def with_candidates(source: SourceRows, path: str, cleaning: Cleaning) -> SourceRows:
    """Return the source with the rows of the file after its own, none of which has a label or a split.

    Raises:
        UserError: the file cannot be read (see `filesets.find`), or lacks query, product_id or title.
    """
    files = find(path, field=FIELD)
    files.need(REQUIRED, FIELD)
    return replace(source, candidates=stream(files, partial(_to_rows, cleaning=cleaning), READ))


def count_candidates(path: str | None) -> int | None:
    """Return how many rows the file has, 0 without a file, None where only reading all of a text would tell."""
    if path is None:
        return 0
    files: FileSet = find(path, field=FIELD)
    if files.format != "parquet":
        return None
    return sum(pq.read_metadata(name, filesystem=files.filesystem).num_rows for name in files.paths)


def _to_rows(batch: list[dict[str, Any]], cleaning: Cleaning) -> pa.Table:
    rows = []
    for raw in batch:
        named = {name: raw.get(name) for name in READ} | ({"line": raw.get("line")} if raw.get(PARSE_ERROR) else {})
        row = make_row(0, named, cleaning, raw.get(PARSE_ERROR))
        if row["error"] or cleaning.locales is None or row["locale"] in cleaning.locales:
            rows.append(row)
    return rows_table(rows)
