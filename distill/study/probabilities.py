"""A run's probabilities: kept in few characters, and put together by seed.

Shapes: N pairs, C labels.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import numpy as np

from distill.study.data import StudyPairs
from distill.study.records import Record

STEPS = 1000  # probabilities are kept in thousandths
LEAST = 0.5 / STEPS  # what a probability that was rounded to 0 counts as


def packed(probabilities: np.ndarray) -> str:
    """Return NxC probabilities in thousandths as text: all but the last label's, in two bytes each, zipped, base 64."""
    steps = np.round(probabilities[:, :-1] * STEPS).astype("<u2")
    return base64.b64encode(zlib.compress(steps.T.tobytes(), 9)).decode()


def unpacked(text: str, labels: int) -> np.ndarray:
    """Return the probabilities NxC that `packed` wrote; each row sums to 1 and none is 0."""
    steps = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u2").reshape(labels - 1, -1).T
    found = np.maximum(np.column_stack([steps, STEPS - steps.sum(1, dtype=int)]) / STEPS, LEAST)
    return np.asarray(found / found.sum(1, keepdims=True))


def by_seed(pairs: StudyPairs, finals: Sequence[Record]) -> dict[int, np.ndarray]:
    """Return the probabilities NxC of each seed: those of all folds, in the order of the tested pairs."""
    labels = len(pairs.scheme.labels)
    found: dict[int, np.ndarray] = {}
    for record in finals:
        own = found.setdefault(record["seed"], np.zeros((len(pairs.tested), labels)))
        own[pairs.tested_in(record["fold"])] = unpacked(record["probabilities"], labels)
    return found
