"""Mines pairs that a person would have to look at twice: near misses by meaning and by words, then random products.

Shapes: Q queries, N products, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.base.tables import write_table
from distill.candidates.bm25 import Bm25
from distill.candidates.shop import Key, Query, Row, Shop
from distill.config import TargetSettings
from distill.targets.sentence_encoder import SentenceEncoder, embed

SCORES_AT_A_TIME = 1 << 24
Mined = tuple[Query, Key, int, str]  # query, product, rank from 0, and what found it


@dataclass(frozen=True)
class Mining:
    """How many pairs of each query, what share of them random, and with which encoder.

    `scratch` is a folder that every node sees, for the texts to be encoded.
    """

    per_query: int
    random_share: float
    seed: int
    encoder: TargetSettings
    scratch: Path

    @property
    def near(self) -> int:
        """How many pairs of a query are near misses."""
        return self.per_query - round(self.per_query * self.random_share)


def mine(shop: Shop, mining: Mining) -> Iterator[Mined]:
    """Yield for every query its nearest products by the frozen encoder and by BM25 in turn, then random ones.

    Only products of the query's locale are taken, and no pair that the run has. A shop that is too small gives fewer.
    """
    for locale in sorted({query.locale for query in shop.queries.values()}):
        queries = [query for query in shop.queries.values() if query.locale == locale]
        if keys := [key for key in shop.products if key[0] == locale]:
            yield from _mine(queries, keys, shop, mining)


def _mine(queries: Sequence[Query], keys: Sequence[Key], shop: Shop, mining: Mining) -> Iterator[Mined]:
    known = _known(queries, {key: place for place, key in enumerate(keys)}, shop)
    most = mining.near + max(map(len, known))
    texts, words = [product_text(shop.products[key]) for key in keys], [query.text for query in queries]
    vectors = encoded([*words, *texts], mining.encoder, mining.scratch)
    by_meaning = nearest(vectors[: len(words)], vectors[len(words) :], most)
    by_words = Bm25(texts).best(words, most)
    for query, taken, meant, said in zip(queries, known, by_meaning, by_words, strict=True):
        found = interleaved({"encoder": meant, "bm25": said}, taken, mining.near)
        draws = np.random.default_rng([mining.seed, int(query.query_id, 16)])
        size = min(len(keys), mining.per_query + len(taken) + len(found))
        drawn = draws.choice(len(keys), size, replace=False)
        found |= interleaved({"random": drawn}, {*taken, *found}, mining.per_query - mining.near)
        for rank, (place, origin) in enumerate(found.items()):
            yield query, keys[place], rank, origin


def _known(queries: Sequence[Query], places: Mapping[Key, int], shop: Shop) -> list[set[int]]:
    """Return for each query the places of the products with which the run has a pair."""
    found: dict[str, set[int]] = {query.query_id: set() for query in queries}
    for own, product in shop.judged:
        if own in found and product in places:
            found[own].add(places[product])
    return list(found.values())


def product_text(product: Row) -> str:
    """Return what both rankings read of a product: its title, and its brand where the title does not name it."""
    title, brand = product["title"], product["brand"] or ""
    return title if brand.casefold() in title.casefold() else f"{title} {brand}"


def interleaved(rankings: Mapping[str, Iterable[int]], taken: Collection[int], most: int) -> dict[int, str]:
    """Return at most `most` places and the ranking that gave each: first, second and further of every ranking in turn.

    Args:
        taken: places to leave out.
    """
    found: dict[int, str] = {}
    free = ([int(place) for place in ranking if int(place) not in taken] for ranking in rankings.values())
    for turn in zip_longest(*free):
        for name, place in zip(rankings, turn, strict=True):
            if place is not None and len(found) < most:
                found.setdefault(place, name)
    return found


def nearest(queries: np.ndarray, products: np.ndarray, most: int) -> list[np.ndarray]:
    """Return for each of QxD vectors the places of the `most` products of NxD with the highest cosine, in order."""
    queries, products = _unit(queries), _unit(products)
    most, found = min(most, len(products)), []
    step = max(1, SCORES_AT_A_TIME // max(1, len(products)))
    for start in range(0, len(queries), step):
        scores = -np.round(queries[start : start + step] @ products.T, 6)  # equal texts must tie whatever the batch
        for row in scores:
            best = np.argpartition(row, most - 1)[:most] if most else np.zeros(0, int)
            found.append(best[np.lexsort((best, row[best]))])
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


class TextEncoder(SentenceEncoder):
    """Ray Data actor with a frozen encoder that turns a table with `text` into one with `vector`."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.table({"vector": pa.array(list(self.encode(batch["text"].to_pylist())), pa.list_(pa.float32()))})


def encoded(texts: Sequence[str], encoder: TargetSettings, scratch: Path) -> np.ndarray:
    """Return the vectors of all texts, one row each, as Ray Data's actors of `targets.workers` encode them."""
    path = write_table(scratch / "candidate-texts.parquet", pa.table({"text": pa.array(texts)}))
    try:
        tables = list(embed(path, encoder, TextEncoder))
    finally:
        path.unlink(missing_ok=True)
    flat = np.concatenate([table["vector"].combine_chunks().flatten().to_numpy() for table in tables])
    return flat.reshape(len(texts), -1)
