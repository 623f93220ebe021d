"""Reads the sources that are files: tables of your own, ESCI, Chorus and WANDS, and files of seed rationales."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from cluster.base.errors import UserError
from mpcot.sources import joined
from mpcot.sources.clean_rows import SOURCE_SEED, Cleaning, SourceRows, make_row, rows_table
from mpcot.sources.clean_texts import clean_text
from mpcot.sources.config import COLUMNS, REQUIRED, EsciSource, FileSource, TableSource, WandsSource
from mpcot.sources.delimited import PARSE_ERROR
from mpcot.sources.filesets import MAPPED, FileSet, collect, find, stream
from mpcot.sources.places import exists

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
    """Read a source that is files. The rows keep the order of the files.

    Raises:
        UserError: a file that cannot be read (see `filesets.find`), or a missing column.
    """
    rows: Iterable[pa.Table] = _READERS[source.kind](source, cleaning)  # type: ignore[attr-defined]
    return SourceRows(rows, _read_seeds(source, cleaning) if source.seeds else None)


def files_of(source: FileSource) -> list[FileSet]:
    """Return the files that a source reads, without seeds, judgements and the like.

    Raises:
        UserError: they cannot be read (see `filesets.find`).
    """
    if isinstance(source, TableSource):
        return [find(source.path, source.format)]
    form = "tsv" if isinstance(source, WandsSource) else "auto"
    known = [path for name in _FILES[source.kind] if (path := exists(source.path.rstrip("/"), name))]  # type: ignore[attr-defined]
    return [find(path, form) for path in known] or [find(source.path)]


def to_rows(
    batch: list[dict[str, Any]], columns: Mapping[str, str], cleaning: Cleaning, version: str | None = None
) -> pa.Table:
    """Return the rows of a flat file as `ROW` rows; `columns` maps our names to those in the file.

    Rows that do not belong to the version of the data set are left out, as those of other locales are.
    """
    rows = []
    for raw in batch:
        error = raw.get(PARSE_ERROR)
        if not error and not joined.in_version(raw, version):
            continue
        named = {ours: raw.get(theirs) for ours, theirs in columns.items()}
        row = make_row(0, named | ({"line": raw.get("line")} if error else {}), cleaning, error)
        # A line that could not be parsed has no locale to go by. It is kept, to be counted as failed.
        if error or cleaning.locales is None or row["locale"] in cleaning.locales:
            rows.append(row)
    return rows_table(rows)


def _flat(
    files: FileSet, columns: Mapping[str, str], source: FileSource, cleaning: Cleaning, version: str | None = None
) -> Iterable[pa.Table]:
    transform = partial(to_rows, columns=columns, cleaning=cleaning, version=version)
    return stream(files, transform, [*columns.values(), *([version] if version else [])], source.limit)


def _read_table(source: TableSource, cleaning: Cleaning) -> Iterable[pa.Table]:
    files = find(source.path, source.format)
    files.need(list(source.columns.values()), "source.columns", MAPPED)
    columns = {name: source.columns.get(name, name) for name in COLUMNS}
    files.need([columns[name] for name in REQUIRED], "source.path", MAPPED)
    return _flat(files, columns, source, cleaning)


def _read_esci(source: EsciSource, cleaning: Cleaning) -> Iterable[pa.Table]:
    """Read the two official parquet files if `path` is a folder with them, or else one flat file."""
    folder = source.path.rstrip("/")
    examples = exists(folder, ESCI_EXAMPLES)
    if examples:
        products = exists(folder, ESCI_PRODUCTS)
        if not products:
            raise UserError(f"source.path: {folder} has {ESCI_EXAMPLES} but no {ESCI_PRODUCTS}. Add that file")
        return joined.read_esci(examples, products, source, cleaning)
    files = find(source.path)
    locale = "product_locale" if "product_locale" in files.columns else "query_locale"
    advice = "Correct the file, or read it with source.kind = 'table' and name yours in source.columns"
    files.need([ESCI_COLUMNS[name] for name in REQUIRED], "source.path", advice)
    version = joined.version_column(source, files)
    return _flat(files, ESCI_COLUMNS | {"locale": locale}, source, cleaning, version)


def _to_seeds(batch: list[dict[str, Any]], cleaning: Cleaning) -> pa.Table:
    """Return the rows of a file of seed rationales as `SOURCE_SEED` rows."""
    seeds = [{name: clean_text(raw.get(name)) for name in SOURCE_SEED.names} for raw in batch]
    for seed in seeds:
        seed["verdict"] = cleaning.verdict_of(seed["verdict"])
        seed["locale"] = (seed["locale"] or cleaning.default_locale).lower()
        seed["origin"] = seed["origin"] or "file"
    return pa.Table.from_pylist(seeds, schema=SOURCE_SEED)


def _read_seeds(source: FileSource, cleaning: Cleaning) -> pa.Table:
    assert source.seeds is not None
    files = find(source.seeds, field="source.seeds")
    files.need(SEED_COLUMNS, "source.seeds")
    return collect(files, partial(_to_seeds, cleaning=cleaning), SOURCE_SEED.names)


_FILES = {
    "esci": (ESCI_EXAMPLES, ESCI_PRODUCTS),
    "chorus": ("judgments.jsonl", "products.jsonl"),
    "wands": ("label.csv", "query.csv", "product.csv"),
}
_READERS: dict[str, Any] = {
    "table": _read_table,
    "esci": _read_esci,
    "chorus": joined.read_chorus,
    "wands": joined.read_wands,
}
