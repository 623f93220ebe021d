"""Finds twins: queries that say the same, up to locale, plural and word order. They must not lie in two splits."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import snowballstemmer
import xxhash

from cluster.base.errors import UserError
from mpcot.filters.near_duplicates import jaccard, minhash
from mpcot.sources.config import Kept

# Stemmers by the languages and countries that locales begin or end with. Where a code is both, it is the language.
STEMMERS = {
    "arabic": "ar sa eg", "catalan": "ca", "czech": "cs cz", "danish": "da dk", "dutch": "nl",
    "english": "en us uk gb au ie nz in", "estonian": "et ee", "finnish": "fi", "french": "fr", "german": "de at",
    "greek": "el gr", "hindi": "hi", "hungarian": "hu", "indonesian": "id", "italian": "it", "lithuanian": "lt",
    "norwegian": "nb no nn", "polish": "pl", "portuguese": "pt br", "romanian": "ro", "russian": "ru",
    "serbian": "sr rs", "spanish": "es mx", "swedish": "sv se", "tamil": "ta", "turkish": "tr",
}  # fmt: skip
_BY_CODE = {code: name for name, codes in STEMMERS.items() for code in codes.split()}
NEAR = 0.8  # the Jaccard similarity of two queries' runs of three characters from which they are near-duplicates
NEAR_BANDS = (0.1, 0.9)  # a false hit costs a comparison, a miss leaves two near-duplicates apart
Row = Mapping[str, Any]


@cache
def _stemmer(locale: str) -> Any:
    """Return the stemmer of a locale such as us, de_AT or pt-BR, or None where there is none."""
    codes = re.split(r"[-_]", locale.casefold())
    name = next((_BY_CODE[code] for code in codes if code in _BY_CODE), None)
    return snowballstemmer.stemmer(name) if name else None


@lru_cache(1 << 16)
def _stem(word: str, locale: str) -> str:
    stemmer = _stemmer(locale)
    return str(stemmer.stemWord(word)) if stemmer else word


def _words(query: str) -> list[str]:
    """Return the words in their order, folded. Marks are kept, as Indic scripts write vowels with them."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", query).casefold()).replace("’", "'")
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return kept.split() or [text]


def split_keys(query: str, locale: str) -> tuple[str, str]:
    """Return the sorted words of a query as they are, and stemmed by the language of its locale.

    Queries that share either are twins. The first finds the same text in two locales, which stem it differently.
    """
    words = _words(query)
    return " ".join(sorted(words)), " ".join(sorted(_stem(word, locale) for word in words))


def _key(kind: str, text: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{kind} {text}".encode())


@dataclass(frozen=True)
class Twins:
    """The queries of R rows, of which N differ. It keeps 16 bytes of each query and 12 of each row beside their ids.

    Args:
        numbers: the number of each query by its id.
        texts: Nx2, digests of both split keys.
        of_row: R, the number of the query.
        products: R, digests of the product ids.
    """

    numbers: Mapping[str, int]
    texts: np.ndarray
    of_row: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Twins:
        """Return those of rows with `query_id`, `query`, `locale` and `product_id`."""
        numbers: dict[str, int] = {}
        of_row = np.fromiter((numbers.setdefault(row["query_id"], len(numbers)) for row in rows), np.int32, len(rows))
        first = (rows[place] for place in np.unique(of_row, return_index=True)[1])
        keys = (key for row in first for key in split_keys(row["query"], row["locale"]))
        texts = np.fromiter((_key("text", key) for key in keys), np.uint64, 2 * len(numbers)).reshape(-1, 2)
        products = np.fromiter((_key("product", row["product_id"]) for row in rows), np.uint64, len(rows))
        return cls(numbers, texts, of_row, products)

    def like(self, queries: Collection[str]) -> set[str]:
        """Return the ids of all queries that are twins of `queries`, these included."""
        known: Any = np.isin(self.texts, self.texts[[self.numbers[query] for query in queries]])
        chosen = known.any(axis=1)
        return {query for query, number in self.numbers.items() if chosen[number]}

    def share_like(self, queries: Collection[str], others: Collection[str]) -> float:
        """Return the share of `queries` that are among the others, as such or as a twin."""
        asked, seen = (self.texts[[self.numbers[query] for query in some]] for some in (queries, others))
        return round(float(np.isin(asked, seen).any(axis=1).mean()), 4) if len(asked) else 0.0


def groups_of(rows: Sequence[Row], kept: Collection[Kept]) -> dict[str, str]:
    """Return, for each query that is kept together with others, the smallest id among them.

    Raises:
        UserError: so many queries hang together that they cannot be split.
    """
    if not kept or not rows:
        return {}
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    twins = Twins.of(rows)
    names = np.array(list(twins.numbers), dtype=object)
    owners, keys = _links(twins, rows, kept)
    places, links = np.unique(keys, return_inverse=True)
    size = len(names) + len(places)
    graph = coo_matrix((np.ones(len(owners), bool), (owners, len(names) + links)), (size, size))
    component = connected_components(graph, directed=False)[1][: len(names)]
    _check_sizes(component, kept)
    least: dict[int, str] = {}
    for own, name in zip(component.tolist(), names, strict=True):
        least[own] = min(name, least.get(own, name))
    shared = np.bincount(component)[component] > 1
    return {name: least[own] for own, name, more in zip(component.tolist(), names, shared, strict=True) if more}


def _links(twins: Twins, rows: Sequence[Row], kept: Collection[Kept]) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers of queries, each with a key; queries with a key in common are kept together."""
    owners, keys = [np.repeat(np.arange(len(twins.texts)), 2)], [twins.texts.ravel()]
    if "products" in kept:
        owners, keys = [*owners, twins.of_row], [*keys, twins.products]
    if "near_duplicates" in kept:
        pairs = np.array(list(_near(twins, rows)), np.int64).reshape(-1, 2)
        owners, keys = [*owners, pairs.ravel()], [*keys, np.repeat(np.arange(len(pairs), dtype=np.uint64), 2)]
    return np.concatenate(owners), np.concatenate(keys)


def _near(twins: Twins, rows: Sequence[Row]) -> Iterable[tuple[int, int]]:
    """Yield the numbers of queries whose stemmed keys are near-duplicates (MinHash, Broder 1997, decided exactly)."""
    from datasketch import MinHashLSH

    index = MinHashLSH(NEAR, 64, NEAR_BANDS)
    said: dict[int, frozenset[int]] = {}
    for number, place in zip(*np.unique(twins.of_row, return_index=True), strict=True):
        text = f" {split_keys(rows[place]['query'], rows[place]['locale'])[1]} "
        own = frozenset(xxhash.xxh32_intdigest(text[i : i + 3].encode()) for i in range(len(text) - 2))
        hashed = minhash(own)
        yield from ((int(number), other) for other in index.query(hashed) if jaccard(own, said[other]) >= NEAR)
        index.insert(int(number), hashed, check_duplication=False)
        said[int(number)] = own


def _check_sizes(component: np.ndarray, kept: Collection[Kept]) -> None:
    share = np.bincount(component).max() / len(component)
    if len(component) > 10 and share > 0.5:
        raise UserError(
            f"split.kept_together: {share:.0%} of the {len(component)} labelled queries hang together by "
            f"{', '.join(kept)}, so they cannot be split. Take products or near_duplicates out of the setting"
        )
