"""Fits on dev how sure each perspective may be and how much it counts, and applies that to judgements.

Every perspective's distribution is scaled by a temperature of its own. The soft labels are the mean of the scaled
distributions by the weights, and the vote is the verdict with the largest sum of weights.

Shapes: N pairs, P perspectives, C labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from cluster.base.errors import UserError
from mpcot.schemes.scheme import Scheme
from mpcot.temperature import TINY, fit_temperature, scaled

MOST_LOG_WEIGHT = 3.0  # bounds the weights' ratio, since few dev pairs should silence nobody
Row = dict[str, Any]


@dataclass(frozen=True)
class VoteFit:
    """One temperature and one weight per perspective; the weights sum to 1."""

    temperatures: tuple[float, ...]
    weights: tuple[float, ...]

    def apply(self, row: Mapping[str, Any], scheme: Scheme) -> Row:
        """Return a judgement with vote, agreement and distributions as fitted. Its verdicts stay.

        A judgement of the pair as a whole, without verdicts, stays as it is.
        """
        if not any(row["verdicts"]):
            return dict(row)
        weights, soft = self.spoken(row)
        mean = np.sum([weight * soft[place] for place, weight in weights.items()], axis=0)
        said: dict[str, float] = defaultdict(float)
        for place, weight in weights.items():
            said[row["verdicts"][place]] += weight
        vote = max(said, key=lambda code: (said[code], mean[scheme.index(code)]))
        shares = [soft[place].tolist() if place in soft else None for place in range(len(self.weights))]
        agreement = row["verdicts"].count(vote) / len(row["verdicts"])
        return {**row, "vote": vote, "agreement": agreement, "soft": mean.tolist(), "perspective_soft": shares}

    def spoken(self, row: Mapping[str, Any]) -> tuple[dict[int, float], dict[int, np.ndarray]]:
        """Return weight and distribution of every perspective that has a verdict, by its place."""
        places = [place for place, verdict in enumerate(row["verdicts"]) if verdict is not None]
        total = sum(self.weights[place] for place in places)
        soft = {p: scaled(np.array([row["perspective_soft"][p]]), self.temperatures[p])[0] for p in places}
        return {place: self.weights[place] / total for place in places}, soft


def fit_vote(rows: Sequence[Mapping[str, Any]], gold: Sequence[str], scheme: Scheme) -> tuple[VoteFit, dict[str, Any]]:
    """Return the fit with the least log-loss on N judgements, and the log-loss of their soft labels before and after.

    The temperatures are fitted first, one perspective at a time, then the weights.

    Raises:
        UserError: there are no judgements.
    """
    if not rows:
        raise UserError("judge.fit: no labelled dev pair was judged. Give split.dev a share, or set judge.fit = false")
    numbers = np.array([scheme.index(code) for code in gold])
    width = len(rows[0]["verdicts"])
    temperatures = tuple(_temperature(rows, numbers, place) for place in range(width))
    even = VoteFit(temperatures, (1 / width,) * width)
    fit = VoteFit(temperatures, _weights(rows, numbers, even))
    losses = [_log_loss(rows, numbers, one, scheme) for one in (VoteFit((1.0,) * width, even.weights), fit)]
    return fit, {"log_loss_before": losses[0], "log_loss_after": losses[1]}


def _temperature(rows: Sequence[Mapping[str, Any]], gold: np.ndarray, place: int) -> float:
    spoken = [n for n, row in enumerate(rows) if row["verdicts"][place] is not None]
    shares = np.array([rows[n]["perspective_soft"][place] for n in spoken])
    return fit_temperature(gold[spoken].tolist(), shares) or 1.0


def _weights(rows: Sequence[Mapping[str, Any]], gold: np.ndarray, even: VoteFit) -> tuple[float, ...]:
    """Return the P weights with which the mean of the scaled distributions has the least log-loss."""
    right = np.zeros((len(rows), len(even.weights)))  # the probability of the gold label, NxP
    there = np.zeros_like(right)
    for n, row in enumerate(rows):
        for place, soft in even.spoken(row)[1].items():
            right[n, place], there[n, place] = soft[gold[n]], 1

    def nll(logs: np.ndarray) -> float:
        weights = softmax(logs)
        return float(-np.log(np.maximum(right @ weights / (there @ weights), TINY)).mean())

    best = minimize(
        nll, np.zeros(right.shape[1]), method="L-BFGS-B", bounds=[(-MOST_LOG_WEIGHT, MOST_LOG_WEIGHT)] * right.shape[1]
    )
    return tuple(softmax(best.x).tolist())


def _log_loss(rows: Sequence[Mapping[str, Any]], gold: np.ndarray, fit: VoteFit, scheme: Scheme) -> float:
    found = [fit.apply(row, scheme)["soft"][number] for row, number in zip(rows, gold, strict=True)]
    return float(-np.log(np.maximum(found, TINY)).mean())
