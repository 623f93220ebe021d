"""BM25: products ranked by the words that they share with a query.

Shapes: N products, Q queries.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

WORD = r"(?u)\w+"
K1, B = 1.2, 0.75
QUERIES_AT_A_TIME = 256


class Bm25:
    """An index of texts.

    Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond", equation 3.15: a word that
    occurs tf times in a text of dl words (avdl on average) adds idf * tf / (k1 * ((1 - b) + b * dl / avdl) + tf). As in
    Lucene, idf = ln(1 + (N - n + 0.5) / (n + 0.5)) for a word of n texts, so that a word of most texts adds a little
    instead of taking away. A word that a query repeats counts as often as it is repeated.
    """

    def __init__(self, texts: Sequence[str], k1: float = K1, b: float = B) -> None:
        self.size = len(texts)
        self.words = CountVectorizer(token_pattern=WORD, dtype=np.float64)
        self.weights: csr_matrix | None = None  # one row per text; None if no text has a word
        if any(re.search(WORD, text) for text in texts):
            self.weights = _weights(csr_matrix(self.words.fit_transform(texts)), k1, b)

    def scores(self, queries: Sequence[str]) -> csr_matrix:
        """Return the scores as QxN; what is not stored is 0."""
        if self.weights is None:
            return csr_matrix((len(queries), self.size))
        return csr_matrix(self.words.transform(queries) @ self.weights.T)

    def best(self, queries: Sequence[str], most: int) -> list[np.ndarray]:
        """Return for each query the places of at most `most` texts that share a word with it, the best first."""
        found = []
        for start in range(0, len(queries), QUERIES_AT_A_TIME):
            scores = self.scores(queries[start : start + QUERIES_AT_A_TIME])
            for row in range(scores.shape[0]):
                inside = slice(scores.indptr[row], scores.indptr[row + 1])
                places, values = scores.indices[inside], scores.data[inside]
                found.append(places[np.lexsort((places, -values))][:most])
        return found


def _weights(counts: csr_matrix, k1: float, b: float) -> csr_matrix:
    """Return what each word adds to the score of each text."""
    texts, words = counts.shape
    having = np.bincount(counts.indices, minlength=words)
    idf = np.log1p((texts - having + 0.5) / (having + 0.5))
    lengths = np.asarray(counts.sum(axis=1)).ravel()
    norm = k1 * ((1 - b) + b * lengths / lengths.mean())
    rows = np.repeat(np.arange(texts), np.diff(counts.indptr))
    weighted = counts.copy()
    weighted.data = idf[counts.indices] * counts.data / (norm[rows] + counts.data)
    return weighted
