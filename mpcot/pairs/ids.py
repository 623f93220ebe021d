"""The ids of queries and pairs, by which all stages know them."""

from __future__ import annotations

from cluster.base.stage_folder import digest


def query_id(locale: str, query: str) -> str:
    """Return the id of a query. Case makes no difference."""
    return digest(["query", locale, query.casefold()])


def pair_id(locale: str, query: str, product_id: str) -> str:
    """Return the id of a pair: 16 hex digits. The case of the query makes no difference."""
    return digest(["pair", locale, query.casefold(), product_id])
