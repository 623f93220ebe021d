"""Keeps answers for a while, so that a query and product that were asked before need no model and wait for nobody."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cachetools import TTLCache

from serve.config import CacheSettings
from serve.http.metrics import ModelFigures
from serve.http.schemas import ProductInput, Result, ScoreInput

Reads = Callable[[Mapping[str, Any]], tuple[str, str]]
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Found:
    """What the cache knows of one request: a result or None per product, and the request for the rest, if any."""

    cache: ScoreCache
    products: Sequence[ProductInput]
    keys: Sequence[bytes]
    results: Sequence[Result | None]
    rest: ScoreInput | None

    def complete(self, scored: Sequence[Result]) -> list[Result]:
        """Keep the results of the rest, and return all under the ids of this request."""
        left = iter(scored)
        whole = [known or next(left) for known in self.results]
        for key, known, result in zip(self.keys, self.results, whole, strict=True):
            if known is None:
                self.cache.known[key] = result
        return [r.model_copy(update={"id": p.id}) for r, p in zip(whole, self.products, strict=True)]


class ScoreCache:
    """Results by a digest of what the student reads: its query and product text. Belongs to one event loop.

    So a product that has changed is scored again, but not one in which only another field has.

    Args:
        reads: returns the two texts of a pair that the student reads.
    """

    def __init__(self, reads: Reads, settings: CacheSettings, figures: ModelFigures) -> None:
        self.reads, self.figures = reads, figures
        self.known: TTLCache[bytes, Result] = TTLCache(settings.max_pairs, settings.max_age_s)

    def look_up(self, request: ScoreInput) -> Found:
        """Return what is known of the request, and what is to be scored."""
        products = request.products
        keys = [self._key(request, product) for product in products]
        results = [self.known.get(key) for key in keys]
        missing = [product for product, known in zip(products, results, strict=True) if known is None]
        self.figures.cache_hits.inc(len(products) - len(missing))
        self.figures.cache_misses.inc(len(missing))
        rest = request.model_copy(update={"products": missing}) if missing else None
        return Found(self, products, keys, results, rest)

    def _key(self, request: ScoreInput, product: ProductInput) -> bytes:
        texts = self.reads({"query": request.query, **product.model_dump()})
        digest = hashlib.blake2b(b"explain" if request.explain else b"", digest_size=DIGEST_BYTES)
        for text in texts:  # each after its length, so that no two pairs make the same bytes
            data = text.encode(errors="surrogatepass")
            digest.update(len(data).to_bytes(8) + data)
        return digest.digest()
