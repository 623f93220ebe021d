"""Files of several formats, and the rows that a source reads of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mpcot.schemes.scheme import load_scheme
from mpcot.sources.open_source import read_source


def read(source: Any, scheme: str = "esci") -> list[dict[str, Any]]:
    """Return all rows of a source, failed ones too."""
    return read_source(source, load_scheme(scheme)).rows.to_pylist()


def put(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    """Write rows in the format of the file's ending."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else delimiter)
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path
