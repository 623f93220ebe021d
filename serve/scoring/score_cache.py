"""Keeps answers for a while, so that the same query and product need no model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from cachetools import TTLCache

from serve.config import CacheSettings
from serve.http.metrics import Metrics
from serve.http.schemas import ProductInput, Result, ScoreInput

Answer = Callable[[Sequence[ScoreInput]], list[list[Result]]]


class ScoreCache:
    """Answers requests like `answer`, but asks it only for pairs that are unknown or too old. Use it from one thread.

    A pair is known by its texts, not by the product's id, so that a product that has changed is scored again.
    """

    def __init__(self, answer: Answer, settings: CacheSettings, metrics: Metrics) -> None:
        self.answer, self.metrics = answer, metrics
        self.known: TTLCache[Hashable, Result] = TTLCache(settings.max_pairs, settings.max_age_s)

    def __call__(self, requests: Sequence[ScoreInput]) -> list[list[Result]]:
        """Return one list of results per request."""
        asked = [key_of(r, product) for r in requests for product in r.products]
        found = {key: hit for key in asked if (hit := self.known.get(key))}
        rest = [
            r.model_copy(update={"products": missing})
            for r in requests
            if (missing := [product for product in r.products if key_of(r, product) not in found])
        ]
        self._count(requests, rest)
        for r, results in zip(rest, self.answer(rest) if rest else (), strict=True):
            for product, result in zip(r.products, results, strict=True):
                self.known[key_of(r, product)] = found[key_of(r, product)] = result
        return [[found[key_of(r, p)].model_copy(update={"id": p.id}) for p in r.products] for r in requests]

    def _count(self, requests: Sequence[ScoreInput], rest: Sequence[ScoreInput]) -> None:
        pairs, misses = (sum(len(r.products) for r in some) for some in (requests, rest))
        self.metrics.cache_hits.inc(pairs - misses)
        self.metrics.cache_misses.inc(misses)


def key_of(request: ScoreInput, product: ProductInput) -> Hashable:
    """Return what an answer depends on."""
    texts = product.title, product.brand, product.description, product.bullets
    return request.query, request.explain, texts, tuple((product.attributes or {}).items())
