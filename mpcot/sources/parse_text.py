"""Parses jsonl, csv and tsv into plain rows. A line that cannot be parsed becomes a row with `PARSE_ERROR`."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from typing import Any

PARSE_ERROR = "__parse_error__"  # the key of the reason why a line could not be parsed
DELIMITERS = {"csv": ",", "tsv": "\t"}
TEXT_FORMATS = ("jsonl", *DELIMITERS)


def parse_text(text: str, form: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a jsonl, csv or tsv text. Blank lines are skipped."""
    return _json_rows(text) if form == "jsonl" else _csv_rows(text, DELIMITERS[form])


def _json_rows(text: str) -> Iterator[dict[str, Any]]:
    for line in text.removeprefix("\ufeff").split("\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield {PARSE_ERROR: f"not valid JSON: {error.msg} at character {error.pos}", "line": line}
            continue
        yield row if isinstance(row, dict) else {PARSE_ERROR: "not a JSON object", "line": line}


def _csv_rows(text: str, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # too long a title must not look like a broken file
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), delimiter=delimiter)
    header = next(reader, [])
    for fields in reader:
        if not fields:
            continue
        row: dict[str, Any] = dict(zip(header, fields, strict=False))
        if len(fields) != len(header):
            row[PARSE_ERROR] = f"wrong number of fields: {len(fields)}, the header has {len(header)}"
        yield row
