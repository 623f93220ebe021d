"""Sources whose judgements and products lie in different files: official ESCI, Chorus, WANDS.

The judgements are read first; of the products only those that are judged are kept, so the products file
may be far larger than memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cluster.base.tables import wide
from mpcot.sources.clean_rows import Cleaning, clean_text, describe, make_row, rows_table
from mpcot.sources.config import ChorusSource, EsciSource, WandsSource
from mpcot.sources.filesets import BATCH, FileSet, collect, find
from mpcot.sources.parse_text import PARSE_ERROR


def _strings(*names: str) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])


JUDGED = _strings("query", "product_id", "locale", "label", "split", "error", "line")
PRODUCT = _strings("product_id", "locale", "title", "brand", "description")
Raw = dict[str, Any]
Locales = frozenset[str] | None


@dataclass(frozen=True)
class ToTable:
    """Turns plain rows into a table of `schema`: `pick` names or computes each column, `keep` drops rows."""

    schema: pa.Schema
    pick: Callable[[Raw], Raw]
    keep: Callable[[Raw], bool]

    def __call__(self, batch: list[Raw]) -> pa.Table:
        rows = []
        for raw in batch:
            if PARSE_ERROR in raw and "error" in self.schema.names:
                rows.append({"error": raw[PARSE_ERROR], "line": clean_text(raw.get("line") or str(raw))})
            elif PARSE_ERROR not in raw and self.keep(raw):
                rows.append({key: clean_text(value) for key, value in self.pick(raw).items()})
        return pa.Table.from_pylist(rows, schema=self.schema)


@dataclass(frozen=True)
class Among:
    """Keeps the rows whose columns are among `keys`."""

    columns: tuple[str, ...]
    keys: frozenset[tuple[str | None, ...]]

    def __call__(self, raw: Raw) -> bool:
        return tuple(clean_text(raw.get(name)) for name in self.columns) in self.keys


def read_esci(examples: str, products: str, source: EsciSource, cleaning: Cleaning, locales: Locales) -> pa.Table:
    """Read the Shopping Queries Dataset's examples and products, joined on product_id and product_locale."""
    files, shop = find(examples), find(products)
    files.need(("query", "product_id", "product_locale", "esci_label"), "source.path")
    shop.need(("product_id", "product_locale", "product_title"), "source.path")
    keep = _EsciKeep(locales, f"{source.version}_version" if source.version else None)
    if keep.version:
        files.need((keep.version,), "source.version")
    judged = collect(files, ToTable(JUDGED, _esci_judged, keep), files.columns, source.limit)
    keys = _keys(judged, ("product_id", "locale"))
    among = Among(("product_id", "product_locale"), keys)
    items = collect(shop, ToTable(PRODUCT, _esci_product, among), shop.columns)
    return _join(judged, items, ("product_id", "locale"), cleaning)


@dataclass(frozen=True)
class _EsciKeep:
    locales: Locales
    version: str | None

    def __call__(self, raw: Raw) -> bool:
        locale = (clean_text(raw.get("product_locale")) or "").lower()
        wanted = self.locales is None or locale in self.locales
        return wanted and (not self.version or raw[self.version] == 1)


def _esci_judged(raw: Raw) -> Raw:
    return {
        "query": raw["query"],
        "product_id": raw["product_id"],
        "locale": raw["product_locale"],
        "label": raw["esci_label"],
        "split": raw.get("split"),
    }


def _esci_product(raw: Raw) -> Raw:
    colour = raw.get("product_color")
    attributes = {"colour": colour} if colour else {}
    return {
        "product_id": raw["product_id"],
        "locale": raw["product_locale"],
        "title": raw["product_title"],
        "brand": raw.get("product_brand"),
        "description": describe(attributes, raw.get("product_description"), raw.get("product_bullet_point")),
    }


def read_chorus(source: ChorusSource, cleaning: Cleaning, locales: Locales) -> pa.Table:
    """Read a folder with judgments.jsonl and products.jsonl; the rating is the label."""
    folder = source.path.rstrip("/")
    files, shop = find(f"{folder}/judgments.jsonl"), find(f"{folder}/products.jsonl")
    files.need(("query", "product_id", "rating"), "source.path")
    shop.need(("product_id", "title"), "source.path")
    return _one_locale(
        files, shop, (_chorus_judged, _chorus_product), source=source, cleaning=cleaning, locales=locales
    )


def _chorus_judged(raw: Raw) -> Raw:
    return {"query": raw.get("query"), "product_id": raw.get("product_id"), "label": raw.get("rating")}


def _chorus_product(raw: Raw) -> Raw:
    given = raw.get("attributes") or {}
    attributes = {_attribute_name(key): _attribute(value) for key, value in given.items()}
    return {name: raw.get(name) for name in ("product_id", "title", "brand")} | {
        "description": describe(raw.get("short_description"), attributes)
    }


def _attribute_name(key: str) -> str:
    """Drop the type prefix of "t_product_colour" and write it with spaces."""
    return key.split("_", 1)[-1].replace("_", " ").strip() if key[1:2] == "_" else key


def _attribute(value: Any) -> Any:
    return ("yes" if value else "no") if isinstance(value, bool) else value


def read_wands(source: WandsSource, cleaning: Cleaning, locales: Locales) -> pa.Table:
    """Read a folder with WANDS's query.csv, product.csv and label.csv (tab-separated)."""
    folder = source.path.rstrip("/")
    files, asked, shop = (find(f"{folder}/{name}.csv", "tsv") for name in ("label", "query", "product"))
    files.need(("query_id", "product_id", "label"), "source.path")
    asked.need(("query_id", "query"), "source.path")
    shop.need(("product_id", "product_name"), "source.path")
    named = collect(asked, ToTable(_strings("query_id", "query"), _wands_query, _always), asked.columns)
    texts = dict(zip(named["query_id"].to_pylist(), named["query"].to_pylist(), strict=True))
    return _one_locale(
        files, shop, (_WandsJudged(texts), _wands_product), source=source, cleaning=cleaning, locales=locales
    )


def _always(raw: Raw) -> bool:
    return True


def _wands_query(raw: Raw) -> Raw:
    return {"query_id": raw.get("query_id"), "query": raw.get("query")}


@dataclass(frozen=True)
class _WandsJudged:
    queries: Mapping[str, str]

    def __call__(self, raw: Raw) -> Raw:
        query = self.queries.get(clean_text(raw.get("query_id")) or "")
        return {"query": query, "product_id": raw.get("product_id"), "label": raw.get("label")}


def _wands_product(raw: Raw) -> Raw:
    features = (raw.get("product_features") or "").replace("|", "; ").replace(" : ", ": ")
    attributes = {"class": raw.get("product_class"), "features": features}
    return {
        "product_id": raw.get("product_id"),
        "title": raw.get("product_name"),
        "description": describe(raw.get("product_description"), attributes),
    }


def _one_locale(
    files: FileSet, shop: FileSet, picks: tuple[Any, Any], *, source: Any, cleaning: Cleaning, locales: Locales
) -> pa.Table:
    """Read a source that names no locale: all its rows have `source.default_locale`."""
    if locales is not None and cleaning.default_locale not in locales:
        return rows_table([])
    judged = collect(files, ToTable(JUDGED, picks[0], _always), files.columns, source.limit)
    among = Among(("product_id",), _keys(judged, ("product_id",)))
    items = collect(shop, ToTable(PRODUCT, picks[1], among), shop.columns)
    return _join(judged, items, ("product_id",), cleaning)


def _keys(table: pa.Table, columns: tuple[str, ...]) -> frozenset[tuple[str | None, ...]]:
    return frozenset(zip(*(table[name].to_pylist() for name in columns), strict=True))


def _join(judged: pa.Table, items: pa.Table, on: tuple[str, ...], cleaning: Cleaning) -> pa.Table:
    """Put the first product of each key beside its judgements, whose order stays."""
    places: dict[tuple[str | None, ...], int] = {}
    for place, key in enumerate(zip(*(items[name].to_pylist() for name in on), strict=True)):
        places.setdefault(key, place)
    found = [places.get(key) for key in zip(*(judged[name].to_pylist() for name in on), strict=True)]
    texts = wide(items.select(["title", "brand", "description"])).combine_chunks()
    tables = []
    for start in range(0, len(found), BATCH):  # a product's text comes once per judgement: never all at a time
        here = found[start : start + BATCH]
        beside = texts.take(pa.array(here, pa.int64())).to_pylist()
        raws = judged.slice(start, BATCH).to_pylist()
        tables.append(rows_table(_rows(zip(raws, here, beside, strict=True), cleaning)))
    return pa.concat_tables(tables) if tables else rows_table([])


def _rows(joined: Iterable[tuple[Raw, int | None, Raw]], cleaning: Cleaning) -> Iterator[dict[str, Any]]:
    for raw, place, texts in joined:
        lost = raw["query"] and raw["product_id"] and place is None
        error = raw["error"] or ("product not in the products file" if lost else None)
        yield make_row(0, {k: v for k, v in raw.items() if k != "error"} | texts, cleaning, error)
