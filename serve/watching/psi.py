"""The population stability index: how far the distribution of what is served is from that of the dev split.

PSI = sum over bins of (a - e) ln(a / e), with the expected share e and the actual share a. It comes from credit scoring
(Siddiqi 2006, Credit Risk Scorecards, chapter 8), where below 0.1 counts as stable and above 0.25 as changed; it is the
symmetric divergence of Kullback and Leibler (1951, eq. 2.6).

Shapes: B bins.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.special import chdtri

Reading = Literal["stable", "look", "changed", "too few pairs"]
LOOK, CHANGED = 0.1, 0.25
EMPTY = 0.5  # of a pair in each bin, so that an empty one has a logarithm
LEAST_PAIRS = 300  # those of a few requests are alike, whatever the formula of `by_chance` says
RARE = 0.05


def psi(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the index of two counts, each B. Bins that are empty in both are left out."""
    both = np.stack([expected, actual])[:, _filled(expected, actual)] + EMPTY
    e, a = both / both.sum(1, keepdims=True)
    return float(((a - e) * np.log(a / e)).sum())


def by_chance(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the index that chance exceeds once in twenty times where nothing has changed.

    Without a change, PSI / (1/m + 1/n) of m and n independent pairs is about chi-squared with B - 1 degrees of freedom
    (Yurdakul 2018, Statistical Properties of Population Stability Index, section 3). Pairs of one query are alike, so
    chance can do somewhat more than that.
    """
    bins, pairs = int(_filled(expected, actual).sum()), (expected.sum(), actual.sum())
    if bins < 2 or not all(pairs):
        return 0.0
    return float(chdtri(bins - 1, RARE) * sum(1 / count for count in pairs))


def reading(value: float, chance: float, pairs: int) -> Reading:
    """Return how an index is usually read, unless `pairs` are too few for it.

    Args:
        chance: what chance may give; where that alone would be worth a look, a smaller index says nothing.
    """
    if pairs < LEAST_PAIRS or value <= chance >= LOOK:
        return "too few pairs"
    return "stable" if value < LOOK else "look" if value <= CHANGED else "changed"


def _filled(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    return expected + actual > 0
