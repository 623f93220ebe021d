"""What candidates are made of: the queries that may have some, the products of the shop, and the pairs there are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.base.errors import UserError
from cluster.base.tables import rows_of
from mpcot.pairs.ids import query_id
from mpcot.records import ATTRIBUTES, texts
from mpcot.sources.clean_rows import Cleaning, make_row
from mpcot.sources.clean_texts import clean_text
from mpcot.sources.delimited import PARSE_ERROR
from mpcot.sources.filesets import collect, find

PRODUCT_COLUMNS = ("product_id", "locale", "title", "brand", "description", "bullets", "attributes")
FROM = ("product_id", "locale", "title", "brand", "description", "bullets", "attributes", "colour")
PRODUCT = pa.schema(
    [*texts("product_id?", "locale?", "title?", "brand?", "description?", "bullets?"), ATTRIBUTES, *texts("error?")]
)
RESULT = pa.schema([*texts("query?", "product_id?", "locale?"), pa.field("rank", pa.float64())])
LEARNT = ("train", "unlabelled")  # splits whose queries get candidates
Row = dict[str, Any]
Key = tuple[str, str]  # locale and product id


@dataclass(frozen=True)
class Query:
    """A query of the run that may have candidates."""

    query_id: str
    locale: str
    text: str


@dataclass(frozen=True)
class Shop:
    """`held_out` are ids of dev and test queries; `judged` has the id of the query and the product of every pair."""

    queries: Mapping[str, Query]
    held_out: Collection[str]
    products: Mapping[Key, Row]
    judged: Collection[tuple[str, Key]]


def open_shop(pairs: Path, products: Path | None, cleaning: Cleaning) -> Shop:
    """Read the pairs of a run and, if there is one, a table of all products.

    Args:
        pairs: `pairs.parquet` of a run.
        products: a table with product_id and title and, if known, locale, brand, description, bullets, attributes and
            colour. Without it the products are those of the pairs.

    Raises:
        UserError: the table cannot be read, or none of its rows is a product.
    """
    queries: dict[str, Query] = {}
    held_out: set[str] = set()
    judged: set[tuple[str, Key]] = set()
    shown: dict[Key, Row] = {}
    for row in rows_of(pairs):
        judged.add((row["query_id"], (row["locale"], row["product_id"])))
        if row["split"] in LEARNT:
            queries.setdefault(row["query_id"], Query(row["query_id"], row["locale"], row["query"]))
        else:
            held_out.add(row["query_id"])
        if products is None:
            shown.setdefault((row["locale"], row["product_id"]), {name: row.get(name) for name in PRODUCT_COLUMNS})
    if products is not None:
        shown = _read_products(products, cleaning)
    free = {own: query for own, query in queries.items() if own not in held_out}
    return Shop(free, held_out, shown, judged)


def _read_products(path: Path, cleaning: Cleaning) -> dict[Key, Row]:
    files = find(str(path), field="--products")
    files.need(["product_id", "title"], "--products")
    rows = collect(files, partial(_to_products, cleaning=cleaning), FROM).to_pylist()
    good = [row for row in rows if not row["error"]]
    if not good:
        raise UserError(f"--products: {path}: none of the {len(rows)} rows is a product ({rows[0]['error']})")
    return {(row["locale"], row["product_id"]): row for row in reversed(good)}  # of equal ids the first counts


def _to_products(batch: list[Row], cleaning: Cleaning) -> pa.Table:
    """Clean products as those of a source are."""
    made = []
    for raw in batch:
        given = {name: raw.get(name) for name in FROM} | {"query": "-"}  # a row of a source must have a query
        made.append(make_row(0, given, cleaning, raw.get(PARSE_ERROR)))
    return pa.Table.from_pylist([{name: row.get(name) for name in PRODUCT.names} for row in made], schema=PRODUCT)


def from_results(
    path: Path, shop: Shop, per_query: int, cleaning: Cleaning
) -> tuple[list[tuple[Query, Key, int]], Counter[str]]:
    """Return pairs of a table of search results with their rank from 0, and why others are left out, counted.

    Args:
        path: a table with query and product_id and, if known, locale and rank (1 is the first); without a rank the
            order of the rows counts.
        per_query: the most pairs of one query.

    Raises:
        UserError: the table cannot be read, or none of its rows can be used.
    """
    rows = _read_results(path, cleaning)
    left_out: Counter[str] = Counter()
    first: dict[str, Row] = {}
    taken: dict[str, list[Key]] = {}
    for row in rows:
        own = query_id(row["locale"], row["query"] or "")
        product = (row["locale"], row["product_id"] or "")
        reason = _refusal(shop, own, product, taken.setdefault(own, []), per_query)
        if reason is None:
            taken[own].append(product)
        else:
            left_out[reason] += 1
            first.setdefault(reason, row)
    if len(left_out) and not any(taken.values()):
        said = "; ".join(f"{why}: {n}, first {_named(first[why])}" for why, n in left_out.most_common())
        raise UserError(
            f"--results: {path}: none of the {len(rows)} rows can be used ({said}). Queries must be training queries "
            "of the run, and products must be in it or in --products"
        )
    pairs = [(shop.queries[own], key, rank) for own, keys in taken.items() for rank, key in enumerate(keys)]
    return pairs, left_out


def _read_results(path: Path, cleaning: Cleaning) -> list[Row]:
    """Return the rows by rank; rows without one keep their order after the others."""
    files = find(str(path), field="--results")
    files.need(["query", "product_id"], "--results")
    rows: list[Row] = collect(files, partial(_to_results, cleaning=cleaning), RESULT.names).to_pylist()
    return sorted(rows, key=lambda row: math.inf if row["rank"] is None else row["rank"])


def _refusal(shop: Shop, own: str, product: Key, taken: list[Key], per_query: int) -> str | None:
    if own in shop.held_out:
        return "query is in dev or test"
    if own not in shop.queries:
        return "unknown query"
    if product not in shop.products:
        return "unknown product_id"
    if (own, product) in shop.judged:
        return "pair is in the run"
    if product in taken:
        return "twice"
    return "beyond --per-query" if len(taken) >= per_query else None


def _named(row: Row) -> str:
    return f"{row['query']!r}, product {row['product_id']}"


def _to_results(batch: list[Row], cleaning: Cleaning) -> pa.Table:
    rows = []
    for raw in batch:
        row: Row = {name: clean_text(raw.get(name)) for name in ("query", "product_id", "locale")}
        row["locale"] = (row["locale"] or cleaning.default_locale).lower()
        rows.append(row | {"rank": _rank(raw.get("rank"))})
    return pa.Table.from_pylist(rows, schema=RESULT)


def _rank(value: Any) -> float | None:
    if (text := clean_text(value)) is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--results: rank {text[:50]!r} is not a number. Correct it, or take the column out") from None
