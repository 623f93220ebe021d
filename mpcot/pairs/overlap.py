"""How far dev and test overlap with what the student learns from: in queries that say the same, and in products."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from cluster.base.sql import quoted
from mpcot.pairs.twins import Twins

HELD = ("dev", "test")
LEARNT = ("train", "unlabelled")


def overlap_between(twins: Twins, queries: list[tuple[Any, ...]], products: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Return for dev and test the shares of `queries` and `products` that the student also learns from.

    Args:
        queries: the rows of `QUERIES`.
        products: the row of `PRODUCTS`.
    """
    by_split: dict[str, list[str]] = defaultdict(list)
    for split, query in queries:
        by_split[split].append(query)
    learnt = [query for split in LEARNT for query in by_split[split]]
    ((dev, test),) = products
    shares = {"dev": dev, "test": test}
    return {
        split: {"queries": twins.share_like(by_split[split], learnt), "products": round(shares[split] or 0.0, 4)}
        for split in HELD
    }


QUERIES = "SELECT DISTINCT split, query_id FROM settled WHERE error IS NULL"
PRODUCTS = f"""
    SELECT avg(learnt::INT) FILTER (dev), avg(learnt::INT) FILTER (test) FROM (
        SELECT bool_or(split IN ({quoted(LEARNT)})) AS learnt, bool_or(split = 'dev') AS dev,
            bool_or(split = 'test') AS test
        FROM settled WHERE error IS NULL GROUP BY product_id)"""


def overlap_warning(overlap: dict[str, Any]) -> str | None:
    """Return what to say where the splits of the source itself overlap."""
    shares = {split: overlap["now"][split]["queries"] for split in HELD}
    said = " and ".join(f"{share:.1%} of the {split} queries" for split, share in shares.items() if share)
    if not said or not overlap["own_splits"]:
        return None
    return (
        f"by the source's own splits, {said} are learnt from as well, in another locale, number or word order. Figures "
        "on them are too good; leave the column split out to have queries dealt so that they are not"
    )
