"""Temperature scaling: one number, fitted on held-out pairs, with which a judge is as sure as it is often right.

Guo et al. 2017 (arXiv 1706.04599), section 4.2: softmax(z / T). For probabilities p = softmax(z) this equals p^(1/T),
scaled to sum to 1, so logits are not needed. The most probable label stays the same.

Shapes: N pairs, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

LEAST, MOST = 0.2, 20.0
TINY = 1e-12


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return NxC probabilities at `temperature`: above 1 they are less sure, below 1 surer."""
    return softmax(np.log(np.maximum(probabilities, TINY)) / temperature, axis=1)


def fit_temperature(gold: Sequence[int], probabilities: np.ndarray) -> float | None:
    """Return the temperature from 0.2 to 20 with the least mean negative log-likelihood; None without pairs.

    Args:
        gold: N label numbers.
        probabilities: NxC.
    """
    if not len(gold):
        return None

    def nll(log_temperature: float) -> float:
        found = scaled(probabilities, float(np.exp(log_temperature)))[np.arange(len(gold)), list(gold)]
        return float(-np.log(np.maximum(found, TINY)).mean())

    best = minimize_scalar(nll, bounds=(np.log(LEAST), np.log(MOST)), method="bounded")
    return float(np.exp(best.x))
