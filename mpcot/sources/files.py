"""The sources that read files: one's own tables, ESCI, Chorus, WANDS, and seed rationales beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cluster.base.errors import UserError
from mpcot.sources import joined
from mpcot.sources.clean_rows import SOURCE_SEED, Cleaning, SourceRows, clean_text, make_row, rows_table
from mpcot.sources.config import COLUMNS, REQUIRED, EsciSource, FileSource, TableSource
from mpcot.sources.filesets import FileSet, collect, exists, find
from mpcot.sources.parse_text import PARSE_ERROR

ESCI_EXAMPLES = "shopping_queries_dataset_examples.parquet"
ESCI_PRODUCTS = "shopping_queries_dataset_products.parquet"
ESCI_COLUMNS = {
    "query": "query",
    "product_id": "product_id",
    "title": "product_title",
    "description": "product_description",
    "bullets": "product_bullet_point",
    "brand": "product_brand",
    "colour": "product_color",
    "label": "esci_label",
    "split": "split",
}
SEED_COLUMNS = ("query", "product_id", "perspective", "rationale", "verdict")


def read_files(source: FileSource, cleaning: Cleaning) -> SourceRows:
    """Read a file source; its rows keep the files' order.

    Raises:
        UserError: see `filesets.find`; also a missing column.
    """
    rows = _READERS[source.kind](source, cleaning)  # type: ignore[attr-defined]
    rows = rows.set_column(0, rows.schema.field(0), pa.array(range(rows.num_rows), pa.int64()))
    return SourceRows(rows, _read_seeds(source, cleaning) if source.seeds else None)


@dataclass(frozen=True)
class ToRows:
    """Turns plain rows of a flat file into `ROW` rows; `columns` maps our names to the file's."""

    columns: Mapping[str, str]
    cleaning: Cleaning
    locales: frozenset[str] | None

    def __call__(self, batch: list[dict[str, Any]]) -> pa.Table:
        # A line that could not be parsed has no locale to go by: it is kept, to be counted as failed.
        rows = ((self._row(raw), bool(raw.get(PARSE_ERROR))) for raw in batch)
        return rows_table(row for row, unparsed in rows if unparsed or self._wanted(row))

    def _row(self, raw: dict[str, Any]) -> dict[str, Any]:
        error = raw.get(PARSE_ERROR)
        named = {ours: raw.get(theirs) for ours, theirs in self.columns.items()}
        return make_row(0, named | ({"line": raw.get("line")} if error else {}), self.cleaning, error)

    def _wanted(self, row: Mapping[str, Any]) -> bool:
        return self.locales is None or row["locale"] in self.locales


def wanted_locales(source: FileSource) -> frozenset[str] | None:
    """Return the locales to keep in lower case, or None for all."""
    return None if source.locales is None else frozenset(name.lower() for name in source.locales)


def _flat(files: FileSet, columns: Mapping[str, str], source: FileSource, cleaning: Cleaning) -> pa.Table:
    transform = ToRows(dict(columns), cleaning, wanted_locales(source))
    return collect(files, transform, list(columns.values()), source.limit)


def _read_table(source: TableSource, cleaning: Cleaning) -> pa.Table:
    files = find(source.path, source.format)
    files.need(list(source.columns.values()), "source.columns")
    columns = {name: source.columns.get(name, name) for name in COLUMNS}
    files.need([columns[name] for name in REQUIRED], "source.path")
    return _flat(files, columns, source, cleaning)


def _read_esci(source: EsciSource, cleaning: Cleaning) -> pa.Table:
    """Read the official pair of parquet files where `path` is a folder that has them, else one flat file."""
    folder = source.path.rstrip("/")
    examples = exists(folder, ESCI_EXAMPLES)
    if examples:
        products = exists(folder, ESCI_PRODUCTS)
        if not products:
            raise UserError(f"source.path: {folder} has no {ESCI_PRODUCTS} beside {ESCI_EXAMPLES}")
        return joined.read_esci(examples, products, source, cleaning, wanted_locales(source))
    files = find(source.path)
    locale = "product_locale" if "product_locale" in files.columns else "query_locale"
    files.need([ESCI_COLUMNS[name] for name in REQUIRED], "source.path")
    return _flat(files, ESCI_COLUMNS | {"locale": locale}, source, cleaning)


@dataclass(frozen=True)
class ToSeeds:
    """Turns plain rows of a file of seed rationales into `SOURCE_SEED` rows."""

    cleaning: Cleaning

    def __call__(self, batch: list[dict[str, Any]]) -> pa.Table:
        return pa.Table.from_pylist([self._seed(raw) for raw in batch], schema=SOURCE_SEED)

    def _seed(self, raw: Mapping[str, Any]) -> dict[str, str | None]:
        seed = {name: clean_text(raw.get(name)) for name in SOURCE_SEED.names}
        verdict = seed["verdict"]
        if verdict and verdict not in self.cleaning.codes:  # as `broadfast seeds` writes them, they are the scheme's
            verdict = self.cleaning.label_map.get(verdict, verdict)
        return seed | {
            "locale": (seed["locale"] or self.cleaning.default_locale).lower(),
            "verdict": verdict or None,
            "origin": seed["origin"] or "file",
        }


def _read_seeds(source: FileSource, cleaning: Cleaning) -> pa.Table:
    assert source.seeds is not None
    files = find(source.seeds, field="source.seeds")
    files.need(SEED_COLUMNS, "source.seeds")
    return collect(files, ToSeeds(cleaning), SOURCE_SEED.names)


def _joined(reader: Any) -> Any:
    return lambda source, cleaning: reader(source, cleaning, wanted_locales(source))


_READERS: dict[str, Any] = {
    "table": _read_table,
    "esci": _read_esci,
    "chorus": _joined(joined.read_chorus),
    "wands": _joined(joined.read_wands),
}
