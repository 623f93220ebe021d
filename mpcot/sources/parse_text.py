"""Parses jsonl, csv and tsv into plain rows. A line that cannot be parsed becomes a row with `PARSE_ERROR`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mpcot.sources.delimited import PARSE_ERROR, Layout, parse_delimited
from mpcot.sources.plain_json import load_json


def parse_text(text: str, layout: Layout | None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a csv or tsv text with this layout, or of a jsonl text. Blank lines are skipped."""
    return _json_rows(text) if layout is None else parse_delimited(text, layout)


def _json_rows(text: str) -> Iterator[dict[str, Any]]:
    for line in text.removeprefix("\ufeff").split("\n"):
        if not line.strip():
            continue
        try:
            row = load_json(line)
        except ValueError as error:
            yield {PARSE_ERROR: f"not valid JSON: {error}", "line": line}
            continue
        yield row if isinstance(row, dict) else {PARSE_ERROR: "not a JSON object", "line": line}
