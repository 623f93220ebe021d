"""Makes the catalogue's pairs: several products per query, and labels about as frequent as in real data."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

from cluster.base.errors import UserError
from mpcot.sources.catalogue.derive_labels import Judgement, Query, judge
from mpcot.sources.catalogue.queries import make_queries
from mpcot.sources.catalogue.world import Product, load_world, make_products

# Close to the Shopping Queries Dataset (arXiv 2206.06588), but with more C, of which there would be too few to learn.
MIX = {"E": 0.66, "S": 0.20, "C": 0.06, "I": 0.08}
LOOKALIKE_POOL = 6  # number of most similar titles from which a hard product is drawn


@dataclass(frozen=True)
class Pair:
    """A pair of the catalogue with what its label follows from."""

    query: Query
    product: Product
    judgement: Judgement


def make_pairs(
    count: int, products_per_query: int, hard_share: float, seed: int, categories: int | None = None
) -> list[Pair]:
    """Return `count` shuffled pairs. The same arguments give the same pairs in the same order.

    Args:
        count: pairs to make.
        products_per_query: mean number of products of one query.
        hard_share: share of the S, C and I products whose titles look like the query.
        categories: use only this many of the world's categories; None uses all.

    Raises:
        UserError: the catalogue does not have that many pairs.
    """
    world = load_world()
    world = replace(world, categories=world.categories[:categories])
    products, rng = make_products(world, seed), random.Random(f"pairs/{seed}")
    pairs: list[Pair] = []
    drawn: Counter[str] = Counter()
    for query in make_queries(world, seed):
        spread = max(1, products_per_query // 2)
        size = rng.randint(max(1, products_per_query - spread), products_per_query + spread)
        own = [Pair(query, product, judge(query, product)) for product in products if not _sibling(query, product)]
        pairs += _draw_pairs(own, min(size, count - len(pairs)), hard_share, drawn, rng)
        if len(pairs) >= count:
            rng.shuffle(pairs)
            return pairs
    raise UserError(
        f"source.pairs: the catalogue has only {len(pairs)} pairs, but {count} are asked for. Lower source.pairs"
    )


def _draw_pairs(pairs: list[Pair], size: int, hard_share: float, drawn: Counter[str], rng: random.Random) -> list[Pair]:
    """Draw some of the pairs of one query so that all queries together keep to `MIX`; `drawn` counts their labels."""
    pools: dict[str, list[Pair]] = {label: [] for label in MIX}
    for pair in pairs:
        pools[pair.judgement.label].append(pair)
    chosen: list[Pair] = []
    while len(chosen) < size and any(pools.values()):
        label = _next_label(pools, chosen, drawn, rng)
        pair = _draw(pools[label], label != "E" and rng.random() < hard_share, rng)
        pools[label].remove(pair)
        drawn[label] += 1
        chosen.append(pair)
    return chosen


def _sibling(query: Query, product: Product) -> bool:
    """Return whether both are different accessories of one host, about whose label people disagree."""
    return bool(query.host and product.fits and product.fits[0] == query.host and product.type != query.type)


def _next_label(pools: dict[str, list[Pair]], chosen: list[Pair], drawn: Counter[str], rng: random.Random) -> str:
    """Draw a label of which this query has fewer than `MIX` wants, rather one of which all queries have."""
    own, total = Counter(pair.judgement.label for pair in chosen), sum(drawn.values()) + 10
    weights = {}
    for label in (label for label, pool in pools.items() if pool):
        lack = max(MIX[label] * (len(chosen) + 4) - own[label], 0.02)
        weights[label] = lack * min(max(MIX[label] * total / (drawn[label] + 1), 0.3), 3.0) ** 3
    return rng.choices(list(weights), list(weights.values()))[0]


def _draw(pool: list[Pair], hard: bool, rng: random.Random) -> Pair:
    """Draw a case, each with the same chance, and one of its pairs; if `hard`, one that looks right."""
    cases = {pair.judgement.case for pair in pool}
    if hard and len(cases) > 1:
        cases -= {"other_type"}
    case = rng.choice(sorted(cases))
    pairs = [pair for pair in pool if pair.judgement.case == case]
    if hard:
        pairs = sorted(pairs, key=lambda pair: (-_words_shared(pair), pair.product.product_id))[:LOOKALIKE_POOL]
    return rng.choice(pairs)


def _words_shared(pair: Pair) -> int:
    title = pair.product.title.lower().replace(",", " ").split()
    return len({*pair.query.text.split()} & {*title})
