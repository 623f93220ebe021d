"""Reads sources whose judgements and products are in different files: the official ESCI files, Chorus and WANDS.

The judgements are read first. Only the products that are judged are kept, so that the file of products may be far
larger than memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from cluster.base.tables import wide
from mpcot.records import texts
from mpcot.sources.clean_rows import Cleaning, make_row, rows_table
from mpcot.sources.clean_texts import NOISE, TEXT_LIMIT, bullets_text, clean_text, plain_text
from mpcot.sources.config import ChorusSource, EsciSource, WandsSource
from mpcot.sources.delimited import PARSE_ERROR
from mpcot.sources.filesets import BATCH, FileSet, collect, find

JUDGED = pa.schema(
    [
        *texts("query?", "product_id?", "locale?", "label?", "split?", "error?", "line?"),
        pa.field("ratings", pa.list_(pa.string())),
    ]
)
# `attributes` is JSON here, as Arrow can join at most 2 GiB of the texts of a map.
PRODUCT = pa.schema(texts("product_id?", "locale?", "title?", "brand?", "description?", "bullets?", "attributes?"))
Raw = dict[str, Any]


def _to_table(batch: list[Raw], schema: pa.Schema, pick: Callable[[Raw], Raw], keep: Callable[[Raw], bool]) -> pa.Table:
    """Return the columns that `pick` names of the rows that `keep` accepts, and what could not be parsed as errors."""
    rows = []
    for raw in batch:
        if PARSE_ERROR in raw and "error" in schema.names:
            rows.append({"error": raw[PARSE_ERROR], "line": clean_text(raw.get("line") or str(raw))})
        elif PARSE_ERROR not in raw and keep(raw):
            rows.append({key: _stored(value, key) for key, value in pick(raw).items()})
    return pa.Table.from_pylist(rows, schema=schema)


def _stored(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        if name != "attributes":  # a title per language, for instance, is none; its row will say that it is missing
            return None
        return NOISE.sub("", json.dumps(value, ensure_ascii=False, default=str))
    return [clean_text(one) for one in value] if isinstance(value, list) else clean_text(value)


def _all(raw: Raw) -> bool:
    return True


def _judged_products(shop: FileSet, pick: Callable[[Raw], Raw], judged: pa.Table, on: Mapping[str, str]) -> pa.Table:
    """Read the products that are judged; `on` maps the key columns of `judged` to those of the file."""
    keys = frozenset(zip(*(judged[name].to_pylist() for name in on), strict=True))
    keep = partial(_is_among, columns=tuple(on.values()), keys=keys)
    return collect(shop, partial(_to_table, schema=PRODUCT, pick=pick, keep=keep), shop.columns)


def _is_among(raw: Raw, columns: tuple[str, ...], keys: frozenset[tuple[str | None, ...]]) -> bool:
    return tuple(clean_text(raw.get(name)) for name in columns) in keys


def read_esci(examples: str, products: str, source: EsciSource, cleaning: Cleaning) -> Iterator[pa.Table]:
    """Read the Shopping Queries Dataset: its examples, joined with its products by id and locale."""
    files, shop = find(examples), find(products)
    files.need(("query", "product_id", "product_locale", "esci_label"), "source.path")
    shop.need(("product_id", "product_locale", "product_title"), "source.path")
    version = version_column(source, files)
    keep = partial(_esci_keep, locales=cleaning.locales, version=version)
    to_judged = partial(_to_table, schema=JUDGED, pick=_esci_judged, keep=keep)
    judged = collect(files, to_judged, files.columns, source.limit)
    on = {"product_id": "product_id", "locale": "product_locale"}
    return _join(judged, _judged_products(shop, _esci_product, judged, on), tuple(on), cleaning)


def version_column(source: EsciSource, files: FileSet) -> str | None:
    """Return the column that marks the rows of `source.version`, or None if all are wanted.

    Raises:
        UserError: the files do not have it.
    """
    if source.version is None:
        return None
    files.need((f"{source.version}_version",), "source.version", "Correct the file, or take source.version out")
    return f"{source.version}_version"


def in_version(raw: Raw, column: str | None) -> bool:
    """Return whether a row is marked in this column, by a number or a text."""
    return column is None or clean_text(raw.get(column)) in ("1", "True", "true")


def _esci_keep(raw: Raw, locales: frozenset[str] | None, version: str | None) -> bool:
    locale = (clean_text(raw.get("product_locale")) or "").lower()
    return (locales is None or locale in locales) and in_version(raw, version)


def _esci_judged(raw: Raw) -> Raw:
    return {
        "query": raw["query"],
        "product_id": raw["product_id"],
        "locale": raw["product_locale"],
        "label": raw["esci_label"],
        "split": raw.get("split"),
    }


def _esci_product(raw: Raw) -> Raw:
    return {
        "product_id": raw["product_id"],
        "locale": raw["product_locale"],
        "title": raw["product_title"],
        "brand": raw.get("product_brand"),
        "description": plain_text(raw.get("product_description"), TEXT_LIMIT),
        "bullets": bullets_text(raw.get("product_bullet_point")),
        "attributes": {"colour": raw.get("product_color")},
    }


def read_chorus(source: ChorusSource, cleaning: Cleaning) -> Iterator[pa.Table]:
    """Read a folder with judgments.jsonl and products.jsonl. The rating is the label."""
    folder = source.path.rstrip("/")
    files, shop = find(f"{folder}/judgments.jsonl"), find(f"{folder}/products.jsonl")
    files.need(("query", "product_id", "rating"), "source.path")
    shop.need(("product_id", "title"), "source.path")
    picks = _chorus_judged, _chorus_product
    return _one_locale(files, shop, picks, source.limit, cleaning)


def _chorus_judged(raw: Raw) -> Raw:
    ratings = {"ratings": raw.get("rater_ratings")}
    return {"query": raw.get("query"), "product_id": raw.get("product_id"), "label": raw.get("rating")} | ratings


def _chorus_product(raw: Raw) -> Raw:
    given = raw.get("attributes")
    named = {_attribute_name(key): value for key, value in given.items()} if isinstance(given, Mapping) else None
    return {name: raw.get(name) for name in ("product_id", "title", "brand")} | {
        "description": plain_text(raw.get("short_description"), TEXT_LIMIT),
        "attributes": clean_text(given) if named is None else named,
    }


def _attribute_name(key: str) -> str:
    """Return "product colour" for "t_product_colour": without the prefix for the type, and with spaces."""
    return key.split("_", 1)[-1].replace("_", " ").strip() if key[1:2] == "_" else key


def read_wands(source: WandsSource, cleaning: Cleaning) -> Iterator[pa.Table]:
    """Read a folder with the tab-separated files query.csv, product.csv and label.csv of WANDS."""
    folder = source.path.rstrip("/")
    files, asked, shop = (find(f"{folder}/{name}.csv", "tsv") for name in ("label", "query", "product"))
    files.need(("query_id", "product_id", "label"), "source.path")
    asked.need(("query_id", "query"), "source.path")
    shop.need(("product_id", "product_name"), "source.path")
    to_texts = partial(_to_table, schema=pa.schema(texts("query_id?", "query?")), pick=_wands_query, keep=_all)
    named = collect(asked, to_texts, asked.columns)
    queries = dict(zip(named["query_id"].to_pylist(), named["query"].to_pylist(), strict=True))
    picks = partial(_wands_judged, queries=queries), _wands_product
    return _one_locale(files, shop, picks, source.limit, cleaning)


def _wands_query(raw: Raw) -> Raw:
    return {"query_id": raw.get("query_id"), "query": raw.get("query")}


def _wands_judged(raw: Raw, queries: Mapping[str, str]) -> Raw:
    query = queries.get(clean_text(raw.get("query_id")) or "")
    return {"query": query, "product_id": raw.get("product_id"), "label": raw.get("label")}


def _wands_product(raw: Raw) -> Raw:
    return {
        "product_id": raw.get("product_id"),
        "title": raw.get("product_name"),
        "description": plain_text(raw.get("product_description"), TEXT_LIMIT),
        "attributes": {"class": raw.get("product_class")} | _wands_features(raw.get("product_features")),
    }


def _wands_features(features: Any) -> dict[str, list[str]]:
    """Return the features by name, from "color : blue|legs : 4"; a name may come more than once, or be missing."""
    found: dict[str, list[str]] = {}
    for feature in (clean_text(features) or "").split("|"):
        name, colon, value = feature.partition(" : ")
        found.setdefault(name.strip() if colon else "features", []).append(value if colon else name)
    return found


def _one_locale(files: FileSet, shop: FileSet, picks: Any, limit: int | None, cleaning: Cleaning) -> Iterator[pa.Table]:
    """Read a source without a column for the locale, so that all rows have `source.default_locale`."""
    if cleaning.locales is not None and cleaning.default_locale not in cleaning.locales:
        return iter(())
    judged = collect(files, partial(_to_table, schema=JUDGED, pick=picks[0], keep=_all), files.columns, limit)
    on = {"product_id": "product_id"}
    return _join(judged, _judged_products(shop, picks[1], judged, on), tuple(on), cleaning)


def _join(judged: pa.Table, items: pa.Table, on: tuple[str, ...], cleaning: Cleaning) -> Iterator[pa.Table]:
    """Yield the judgements in their order, each with the texts of the first product that has its key."""
    places: dict[tuple[str | None, ...], int] = {}
    for place, key in enumerate(zip(*(items[name].to_pylist() for name in on), strict=True)):
        places.setdefault(key, place)
    found = [places.get(key) for key in zip(*(judged[name].to_pylist() for name in on), strict=True)]
    texts = wide(items.select(["title", "brand", "description", "bullets", "attributes"])).combine_chunks()
    for start in range(0, len(found), BATCH):  # texts come again for each judgement
        here = found[start : start + BATCH]
        beside = texts.take(pa.array(here, pa.int64())).to_pylist()
        raws = judged.slice(start, BATCH).to_pylist()
        yield rows_table(_rows(zip(raws, here, beside, strict=True), cleaning))


def _rows(joined: Iterable[tuple[Raw, int | None, Raw]], cleaning: Cleaning) -> Iterator[dict[str, Any]]:
    for raw, place, product in joined:
        lost = raw["query"] and raw["product_id"] and place is None
        error = raw["error"] or ("product not in the products file" if lost else None)
        yield make_row(0, {k: v for k, v in raw.items() if k != "error"} | product, cleaning, error)
