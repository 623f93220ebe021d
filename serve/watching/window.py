"""Counts the latest pairs that a model scored by the bins of its export's reference.

Shapes: N pairs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from distill.student.reference import LABEL, LENGTH, SCORE, Reference, histogram, quantities
from mpcot.schemes.scheme import Scheme
from serve.http.schemas import DriftBin, ModelDrift, QuantityDrift
from serve.scoring.scores import Scores
from serve.watching.psi import by_chance, psi, reading

MOST_PAIRS, BLOCK_PAIRS = 20_000, 1_000


class DriftWindow:
    """The latest pairs, 20,000 at most: beyond that the oldest thousand are forgotten, or a batch more.

    One thread counts while others read. A pair whose answer was kept in the cache was counted when it was scored.
    """

    def __init__(self, model: str, reference: Reference, scheme: Scheme) -> None:
        self.model, self.reference, self.scheme = model, reference, scheme
        self.edges = {name: np.array(own.edges) for name, own in reference.histograms.items()}
        self.lock = threading.Lock()
        self.blocks: deque[dict[str, np.ndarray]] = deque([self._empty()])
        self.pairs: deque[int] = deque([0])

    def _empty(self) -> dict[str, np.ndarray]:
        return {name: np.zeros(len(edges) + 1, int) for name, edges in self.edges.items()}

    def add(self, scores: Scores) -> None:
        """Count N pairs that were scored."""
        values = quantities(scores.probabilities, scores.tokens, scores.unknown, self.scheme)
        counted = {name: histogram(edges, values[name]) for name, edges in self.edges.items() if name in values}
        with self.lock:
            for name, counts in counted.items():
                self.blocks[-1][name] += counts
            self.pairs[-1] += len(scores.tokens)
            if self.pairs[-1] >= BLOCK_PAIRS:
                self.blocks.append(self._empty())
                self.pairs.append(0)
            while sum(self.pairs) > MOST_PAIRS and len(self.pairs) > 1:
                self.blocks.popleft()
                self.pairs.popleft()

    def counts(self) -> tuple[int, dict[str, np.ndarray]]:
        """Return the number of pairs in the window, and their counts by quantity."""
        with self.lock:
            return sum(self.pairs), {name: np.sum([block[name] for block in self.blocks], 0) for name in self.edges}

    def drift(self) -> ModelDrift:
        """Compare what was served with the reference."""
        pairs, counts = self.counts()
        found = [self._compared(name, served, pairs) for name, served in counts.items()]
        return ModelDrift(model=self.model, pairs=pairs, reference_pairs=self.reference.pairs, quantities=found)

    def _compared(self, name: str, served: np.ndarray, pairs: int) -> QuantityDrift:
        expected = np.array(self.reference.histograms[name].counts)
        value, chance = psi(expected, served), by_chance(expected, served)
        shares = zip(*(counts / max(1, counts.sum()) for counts in (expected, served)), strict=True)
        names = bin_names(name, self.edges[name].tolist(), self.scheme)
        return QuantityDrift(
            quantity=name,
            psi=value if pairs else None,
            chance=chance if pairs else None,
            reading=reading(value, chance, pairs),
            bins=[DriftBin(name=n, reference=own, served=seen) for n, (own, seen) in zip(names, shares, strict=True)],
        )


def bin_names(quantity: str, edges: Sequence[float], scheme: Scheme) -> list[str]:
    """Return what a reader calls the bins between the edges."""
    if quantity == LABEL:
        return [f"{label.code} {label.name}" for label in scheme.labels]
    if quantity == SCORE:
        return [f"{low:g} to {high:g}" for low, high in pairwise([0.0, *edges, 1.0])]
    if quantity == LENGTH:
        whole = [int(edge) for edge in edges]
        between = [f"{low} to {high - 1}" if high - low > 1 else f"{low}" for low, high in pairwise(whole)]
        return [f"below {whole[0]}", *between, f"{whole[-1]} and more"]
    tops = [f"{100 * edge:g}" for edge in edges[1:]]
    between = [f"{low} to {high} %" for low, high in pairwise(tops)]
    return ["none", f"below {tops[0]} %", *between, f"{tops[-1]} % and more"]
