"""Answers that were given before, kept for a while: the same query and product need no model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from cachetools import TTLCache

from serve.config import CacheSettings
from serve.http.metrics import Metrics
from serve.http.schemas import ProductInput, Result, ScoreInput

Answer = Callable[[Sequence[ScoreInput]], list[list[Result]]]


class ScoreCache:
    """Answers requests like `answer`, asking it only for pairs that are unknown or too old. For one thread.

    A pair is known by its texts, not by the product's id, so that a product that changed is scored anew.
    """

    def __init__(self, answer: Answer, settings: CacheSettings, metrics: Metrics) -> None:
        self.answer, self.metrics = answer, metrics
        self.known: TTLCache[Hashable, Result] = TTLCache(settings.max_pairs, settings.max_age_s)

    def __call__(self, requests: Sequence[ScoreInput]) -> list[list[Result]]:
        """Return one list of results per request."""
        found = [[self.known.get(key_of(r, product)) for product in r.products] for r in requests]
        asked = [
            r.model_copy(update={"products": [p for p, hit in zip(r.products, hits, strict=True) if hit is None]})
            for r, hits in zip(requests, found, strict=True)
        ]
        self._count(found)
        missing = [r for r in asked if r.products]
        answers = iter(self.answer(missing) if missing else ())
        return [
            self._merge(request, hits, next(answers) if rest.products else [])
            for request, hits, rest in zip(requests, found, asked, strict=True)
        ]

    def _count(self, found: list[list[Result | None]]) -> None:
        hits = sum(hit is not None for row in found for hit in row)
        self.metrics.cache_hits.inc(hits)
        self.metrics.cache_misses.inc(sum(map(len, found)) - hits)

    def _merge(self, request: ScoreInput, hits: list[Result | None], fresh: list[Result]) -> list[Result]:
        """Put hits and fresh results into the request's order, and remember the fresh ones."""
        rest = iter(fresh)
        merged = []
        for product, hit in zip(request.products, hits, strict=True):
            result = next(rest) if hit is None else hit.model_copy(update={"id": product.id})
            if hit is None:
                self.known[key_of(request, product)] = result
            merged.append(result)
        return merged


def key_of(request: ScoreInput, product: ProductInput) -> Hashable:
    """What an answer depends on."""
    return request.query, request.explain, product.title, product.brand, product.description
