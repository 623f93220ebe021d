"""The rows that every source yields, and how they are cleaned, the same for all sources. Knows nothing of Ray."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from mpcot.records import ATTRIBUTES, texts
from mpcot.sources.clean_texts import NOISE, attribute_map, clean_text, product_texts

TITLE_LIMIT = 2_000  # characters; a longer title comes from a broken row
QUERY_LIMIT = 500
FAILED_ROW_LIMIT = 2_000  # characters of a failed row that are kept
TEXTS = ("query", "product_id", "title", "locale", "label", "split")  # an object in one of these says nothing

# `source_row` counts the rows of the source from 0. `error` is set if a row cannot become a pair, as "reason" or
# "reason: detail". Only then `raw` has the row as JSON.
ROW = pa.schema(
    [
        pa.field("source_row", pa.int64(), nullable=False),
        *texts("query?", "product_id?", "locale?", "title?", "brand?", "description?", "bullets?"),
        ATTRIBUTES,
        *texts("label?", "split?", "error?", "raw?"),
        pa.field("ratings", pa.list_(pa.string())),
    ]
)

# Seed rationales as a source brings them, with what identifies a pair in the source.
SOURCE_SEED = pa.schema(texts("query?", "product_id?", "locale?", "perspective?", "rationale?", "verdict?", "origin?"))

SPLIT_NAMES = {
    "train": "train", "training": "train", "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev",
    "test": "test", "unlabelled": "unlabelled", "unlabeled": "unlabelled",
}  # fmt: skip


@dataclass(frozen=True)
class SourceRows:
    """All rows of a source (`ROW`), and its seed rationales (`SOURCE_SEED`) and judgements, if it has any.

    `tables` are its own rows and `candidates` those of `source.candidates`, some at a time; they can be read once.
    """

    tables: Iterable[pa.Table]
    seeds: pa.Table | None = None
    judgements: pa.Table | None = None
    candidates: Iterable[pa.Table] = ()

    def numbered(self) -> Iterator[tuple[pa.Table, bool]]:
        """Yield all rows, whose `source_row` counts from 0, and whether they are candidates."""
        count = 0
        for tables, more in ((self.tables, False), (self.candidates, True)):
            for table in tables:
                numbers = pa.array(range(count, count + len(table)), pa.int64())
                count += len(table)
                yield table.set_column(0, ROW.field(0), numbers), more

    @cached_property
    def rows(self) -> pa.Table:
        """All rows as one table, for a source that fits into memory."""
        return pa.concat_tables([ROW.empty_table(), *(table for table, _ in self.numbered())])


@dataclass(frozen=True)
class Cleaning:
    """What cleaning needs to know of the config. It is sent to every worker. `locales` are kept; None keeps all."""

    codes: tuple[str, ...]
    label_map: Mapping[str, str]
    default_locale: str
    locales: frozenset[str] | None = None

    def code_of(self, label: str) -> str:
        """Return the code for a label of the source, or the label itself if it has none.

        `3.0` and `3` are one label: programs write whole numbers as `3.0` if another cell of the column is empty.
        """
        whole = label.removesuffix(".0")
        found = (self.label_map[name] for name in (label, whole, f"{whole}.0") if name in self.label_map)
        return next(found, whole if whole in self.codes else label)

    def verdict_of(self, label: str | None) -> str | None:
        """Return the code for a verdict, which is a code already if broadfast wrote it."""
        return self.code_of(label) if label and label not in self.codes else label


def make_row(source_row: int, raw: Mapping[str, Any], cleaning: Cleaning, error: str | None = None) -> dict[str, Any]:
    """Return a row of the schema `ROW` from a row of the source that has our column names."""
    row: dict[str, Any] = {name: clean_text(raw.get(name)) for name in ("query", "product_id")} | product_texts(raw)
    row["locale"] = (clean_text(raw.get("locale")) or cleaning.default_locale).lower()
    error = error or _no_text(raw)
    try:
        row["attributes"] = _attributes(raw)
    except ValueError as wrong:
        error = error or f"attributes not a JSON object: {wrong}"
    label = clean_text(raw.get("label"))
    row["label"] = cleaning.code_of(label) if label else None
    row["ratings"] = _ratings(raw.get("ratings"), cleaning)
    split = clean_text(raw.get("split"))
    row["split"] = SPLIT_NAMES.get(split.lower(), split) if split else None
    row["source_row"], row["error"] = source_row, error or _problem(row, cleaning.codes)
    row["raw"] = failed_json(raw) if row["error"] else None
    if row["error"]:
        row["title"], row["query"] = (row["title"] or "")[:TITLE_LIMIT], (row["query"] or "")[:QUERY_LIMIT]
    return row


def _no_text(raw: Mapping[str, Any]) -> str | None:
    """Return which field has parts with names, such as a title per language, where one text is asked for; or None."""
    for name in TEXTS:
        value = raw.get(name)
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(part, Mapping | tuple) for part in parts):  # Arrow gives a map as a list of tuples
            return f"{name} not a text: {failed_json({name: value})[:60]}"
    return None


def _ratings(given: Any, cleaning: Cleaning) -> list[str] | None:
    """Return the labels that several people gave, from a list or from a text such as `3; 2; 3`."""
    each = given if isinstance(given, list) else (clean_text(given) or "").split(";")
    labels = (clean_text(one) for one in each)
    return [cleaning.code_of(label) for label in labels if label] or None


def _attributes(raw: Mapping[str, Any]) -> dict[str, str] | None:
    given = attribute_map(raw.get("attributes")) or {}
    return (attribute_map({"colour": raw.get("colour")}) or {}) | given or None


def _problem(row: Mapping[str, Any], codes: tuple[str, ...]) -> str | None:
    """Return why a row cannot become a pair, or None."""
    for name in ("query", "product_id", "title"):
        if not row[name]:
            return f"{name} missing"
    for name, limit in (("query", QUERY_LIMIT), ("title", TITLE_LIMIT)):
        if len(row[name]) > limit:
            return f"{name} too long: {len(row[name])} characters, limit {limit}"
    if row["label"] is not None and row["label"] not in codes:
        return f"unknown label: {row['label'][:50]!r}, the scheme has {', '.join(codes)}"
    if odd := [rating for rating in row["ratings"] or () if rating not in codes]:
        return f"unknown rating: {odd[0][:50]!r}, the scheme has {', '.join(codes)}"
    if row["split"] is not None and row["split"] not in SPLIT_NAMES.values():
        return f"unknown split: {row['split'][:50]!r}"
    return None


def failed_json(raw: Mapping[str, Any]) -> str:
    """Return a failed row as JSON of at most `FAILED_ROW_LIMIT` characters."""
    given = {key: value for key, value in raw.items() if value is not None}
    short = {key: value[:300] if isinstance(value, str) else value for key, value in given.items()}
    return NOISE.sub("", json.dumps(short, ensure_ascii=False, default=str))[:FAILED_ROW_LIMIT]


def rows_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return rows of the schema `ROW` as a table."""
    return pa.Table.from_pylist(list(rows), schema=ROW)


def reason_of(error: str) -> str:
    """Return the part of an error before the detail, by which errors are counted."""
    return error.split(":", 1)[0]
