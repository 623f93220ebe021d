"""Temperature scaling: one number, fitted on held-out pairs, with which a judge is as sure as it is often right.

A `Calibration` has a bias per label besides, for a judge whose labels have other shares than people's.

Guo et al. 2017 (arXiv 1706.04599), section 4.2: softmax(z / T). For probabilities p = softmax(z) this equals p^(1/T),
scaled to sum to 1, so logits are not needed. The most probable label stays the same.

Shapes: N pairs, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

from cluster.config import Settings

LEAST, MOST = 0.2, 20.0
MOST_BIAS = 4.0  # bounds the bias of a label that few held-out pairs have
TINY = 1e-12


class Calibration(Settings):
    """softmax(log p / T + b); Guo et al. 2017, section 4.2, "matrix and vector scaling" with one scale for all labels.

    An empty bias is 0 for every label.
    """

    temperature: float = 1.0
    bias: tuple[float, ...] = ()

    def apply(self, probabilities: Sequence[float]) -> list[float]:
        """Return C probabilities as fitted."""
        if self == Calibration():
            return list(probabilities)
        logits = np.log(np.maximum(probabilities, TINY)) / self.temperature
        return list(softmax(logits + np.array(self.bias) if self.bias else logits).tolist())


def fit_calibration(gold: Sequence[int], probabilities: np.ndarray) -> Calibration | None:
    """Return temperature and bias with the least mean negative log-likelihood; None without pairs.

    The temperature is from 0.2 to 20. The biases are within 4 of 0, and on average 0.

    Args:
        gold: N label numbers.
        probabilities: NxC.
    """
    if not len(gold):
        return None
    logs, rows = np.log(np.maximum(probabilities, TINY)), np.arange(len(gold))

    def nll(found: np.ndarray) -> float:
        return float(-log_softmax(logs / np.exp(found[0]) + found[1:], axis=1)[rows, list(gold)].mean())

    labels = logs.shape[1]
    bounds = [(np.log(LEAST), np.log(MOST)), *[(-MOST_BIAS, MOST_BIAS)] * labels]
    best = minimize(nll, np.zeros(1 + labels), method="L-BFGS-B", bounds=bounds).x
    return Calibration(temperature=float(np.exp(best[0])), bias=tuple((best[1:] - best[1:].mean()).tolist()))


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
