"""Pairs of the catalogue: queries with several judged products each, in a mix like real data, shuffled."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

from cluster.base.errors import UserError
from mpcot.sources.catalogue.derive_labels import Judgement, Query, judge
from mpcot.sources.catalogue.queries import make_queries
from mpcot.sources.catalogue.world import Product, load_world, make_products

# Near the Shopping Queries Dataset (arXiv 2206.06588), with more C, which would else be too few to learn.
MIX = {"E": 0.66, "S": 0.20, "C": 0.06, "I": 0.08}
LOOKALIKE_POOL = 6  # a hard product is drawn from so many of the most similar titles


@dataclass(frozen=True)
class Pair:
    """One judged pair of the catalogue with the structure that its label follows from."""

    query: Query
    product: Product
    judgement: Judgement
    hard: bool


def make_pairs(
    count: int, products_per_query: int, hard_share: float, seed: int, categories: int | None = None
) -> list[Pair]:
    """Return `count` pairs; the same arguments give the same pairs in the same order.

    Args:
        count: pairs to make.
        products_per_query: mean number of products of one query.
        hard_share: share of the S, C and I products drawn from those whose titles look most like the query.
        categories: keep the world's first so many categories; None keeps all.

    Raises:
        UserError: the invented world has too few queries for `count`.
    """
    world = load_world()
    world = replace(world, categories=world.categories[:categories])
    products, rng = make_products(world, seed), random.Random(f"pairs/{seed}")
    pairs: list[Pair] = []
    drawn: Counter[str] = Counter()
    for query in make_queries(world, seed):
        spread = max(1, products_per_query // 2)
        size = rng.randint(max(1, products_per_query - spread), products_per_query + spread)
        pairs += _judged(query, products, min(size, count - len(pairs)), hard_share=hard_share, drawn=drawn, rng=rng)
        if len(pairs) >= count:
            rng.shuffle(pairs)
            return pairs
    raise UserError(f"source.pairs: the catalogue has {len(pairs)} pairs to give, {count} were asked for")


def _judged(
    query: Query,
    products: list[Product],
    size: int,
    *,
    hard_share: float,
    drawn: Counter[str],
    rng: random.Random,
) -> list[Pair]:
    """Draw products of one query so that the whole keeps to `MIX`; `drawn` counts labels over all queries."""
    pools: dict[str, list[tuple[Product, Judgement]]] = {label: [] for label in MIX}
    for product in products:
        judgement = judge(query, product)
        if not _sibling(query, product):
            pools[judgement.label].append((product, judgement))
    chosen: list[Pair] = []
    while len(chosen) < size and any(pools.values()):
        label = _next_label(pools, chosen, drawn, rng)
        hard = label != "E" and rng.random() < hard_share
        item = _draw(pools[label], query, hard, rng)
        pools[label].remove(item)
        drawn[label] += 1
        chosen.append(Pair(query, *item, hard))
    return chosen


def _sibling(query: Query, product: Product) -> bool:
    """Whether both are different accessories of one host: people disagree about those, so none is asked."""
    return bool(query.host and product.fits and product.fits[0] == query.host and product.type != query.type)


def _next_label(
    pools: dict[str, list[tuple[Product, Judgement]]], chosen: list[Pair], drawn: Counter[str], rng: random.Random
) -> str:
    """Draw a label in proportion to what this query lacks of `MIX`, more so where all queries lack it."""
    own, total = Counter(pair.judgement.label for pair in chosen), sum(drawn.values()) + 10
    weights = {}
    for label in (label for label, pool in pools.items() if pool):
        lack = max(MIX[label] * (len(chosen) + 4) - own[label], 0.02)
        weights[label] = lack * min(max(MIX[label] * total / (drawn[label] + 1), 0.3), 3.0) ** 3
    return rng.choices(list(weights), list(weights.values()))[0]


def _draw(
    pool: list[tuple[Product, Judgement]], query: Query, hard: bool, rng: random.Random
) -> tuple[Product, Judgement]:
    """Draw a case, each with the same chance, and one of its products; where `hard`, a lookalike."""
    cases = {judgement.case for _, judgement in pool}
    if hard and len(cases) > 1:
        cases -= {"other_type"}
    case = rng.choice(sorted(cases))
    items = [item for item in pool if item[1].case == case]
    if hard:
        words = set(query.text.split())
        items.sort(key=lambda item: (-_overlap(words, item[0]), item[0].product_id))
    return rng.choice(items[:LOOKALIKE_POOL] if hard else items)


def _overlap(words: set[str], product: Product) -> int:
    return len(words & set(product.title.lower().replace(",", " ").split()))
