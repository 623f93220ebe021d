"""Calibration on held-out pairs, with which a judge is as sure as it is often right.

Temperature scaling, Guo et al. 2017 (arXiv 1706.04599), section 4.2: softmax(z / T). The most probable label stays the
same. With a bias per label besides, softmax(z / T + b), it is bias-corrected temperature scaling, Alexandari et al.
2020 (ICML, arXiv 1901.06852), section 3: it also corrects for other shares of labels than those that were trained on.

For probabilities p = softmax(z) this equals p^(1/T) exp(b), scaled to sum to 1, so logits are not needed.

Shapes: N pairs, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

LEAST, MOST = 0.2, 20.0
MOST_BIAS = 3.0  # of a label that hardly occurs where it is fitted: at most e^3, about 20, times less or more odds
TINY = 1e-12

CalibrationKind = Literal["none", "temperature", "temperature+bias"]


def scaled(probabilities: np.ndarray, temperature: float, bias: Sequence[float] = ()) -> np.ndarray:
    """Return NxC probabilities at `temperature`, above 1 less sure and below 1 surer, and with a bias per label."""
    return softmax(np.log(np.maximum(probabilities, TINY)) / temperature + (np.array(bias) if len(bias) else 0), axis=1)


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


def fit_temperature_and_bias(gold: Sequence[int], probabilities: np.ndarray) -> tuple[float, tuple[float, ...]] | None:
    """Return temperature and bias per label with the least mean negative log-likelihood; None without pairs.

    It is convex in 1/T and the biases. The temperature is from 0.2 to 20, a bias from -3 to 3, and biases sum to 0
    unless one is at its bound: adding the same to all of them changes nothing.

    Args:
        gold: N label numbers.
        probabilities: NxC.
    """
    if not len(gold):
        return None
    logs = np.log(np.maximum(probabilities, TINY))
    truth = np.eye(logs.shape[1])[list(gold)]

    def nll(values: np.ndarray) -> tuple[float, np.ndarray]:
        found = log_softmax(values[0] * logs + values[1:], axis=1)
        wrong = np.exp(found) - truth
        return float(-(found * truth).sum(1).mean()), np.r_[(wrong * logs).sum(1).mean(), wrong.mean(0)]

    labels = logs.shape[1]
    bounds = [(1 / MOST, 1 / LEAST), *[(-MOST_BIAS, MOST_BIAS)] * labels]
    best = minimize(
        nll, np.r_[1.0, np.zeros(labels)], jac=True, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-12}
    )
    return 1 / float(best.x[0]), tuple(float(value) for value in best.x[1:])


def fit_served(
    kind: CalibrationKind, gold: Sequence[int], probabilities: np.ndarray
) -> tuple[float, tuple[float, ...]]:
    """Return the temperature and the biases of `kind` that fit best; a temperature of 1 and no bias without pairs."""
    if kind == "temperature+bias":
        return fit_temperature_and_bias(gold, probabilities) or (1.0, ())
    return (kind == "temperature" and fit_temperature(gold, probabilities)) or 1.0, ()
