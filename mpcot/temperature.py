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
GROUPS = 5

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


def fit_over_queries(
    gold: Sequence[int], probabilities: np.ndarray, queries: Sequence[str]
) -> tuple[float, tuple[float, ...]] | None:
    """Return a temperature, and a bias per label (else no bias) where it serves queries that it was not fitted on.

    Labels have other shares under other queries. With many pairs of few queries a bias fits these queries and nothing
    else, so both fits are tried on held-out queries first (cross-validation over five groups of them).

    Args:
        gold: N label numbers.
        probabilities: NxC.
        queries: N query ids.

    Returns: None without pairs.
    """
    both = fit_temperature_and_bias(gold, probabilities)
    alone = fit_temperature(gold, probabilities)
    if both is None or alone is None:
        return None
    truth, group = np.asarray(gold), np.unique(np.asarray(queries), return_inverse=True)[1] % GROUPS
    losses = np.zeros(2)
    for held in np.unique(group):
        out = group == held
        fits = (
            fit_served(kind, truth[~out].tolist(), probabilities[~out]) for kind in ("temperature", "temperature+bias")
        )
        found = [scaled(probabilities[out], *fit)[np.arange(out.sum()), truth[out]] for fit in fits]
        losses += [-np.log(np.maximum(own, TINY)).sum() for own in found]
    return both if losses[1] < losses[0] else (alone, ())


def fit_served(
    kind: CalibrationKind, gold: Sequence[int], probabilities: np.ndarray
) -> tuple[float, tuple[float, ...]]:
    """Return the temperature and the biases of `kind` that fit best; a temperature of 1 and no bias without pairs."""
    if kind == "temperature+bias":
        return fit_temperature_and_bias(gold, probabilities) or (1.0, ())
    return (kind == "temperature" and fit_temperature(gold, probabilities)) or 1.0, ()
