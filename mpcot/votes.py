"""Combines several answers to one pair: the verdict of the majority, and how many agree with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpcot.asking.join_answers import AnsweredPairs
from mpcot.schemes.scheme import Scheme

SURE = 0.9
TINY = 1e-12
ROUNDED = 9  # decimals, since sums of the same numbers in another order differ in the last


def distribution(logprobs: Sequence[float] | None, verdict: str, scheme: Scheme) -> np.ndarray:
    """Return the distribution over the labels at the verdict, or a fixed one if there are no log-probabilities."""
    if logprobs is None:
        rest = (1 - SURE) / (len(scheme.codes) - 1)
        return np.asarray([SURE if code == verdict else rest for code in scheme.codes])
    weights = np.exp(np.asarray(logprobs, dtype=np.float64) - max(logprobs))
    return weights / weights.sum()


def logprobs_of(shares: Sequence[float]) -> list[float]:
    """Return the logarithms of probabilities, finite also for those that are 0."""
    logs: list[float] = np.log(np.maximum(shares, TINY)).tolist()
    return logs


def mean_distribution(answers: Sequence[Mapping[str, Any]], scheme: Scheme) -> np.ndarray:
    """Return the distribution over the labels of several answers to one question.

    It is the mean of the answers' own. Answers without log-probabilities are counted instead: their shares are smoothed
    by as much as makes a single one as sure as `distribution` has it.
    """
    known = [distribution(a["logprobs"], a["verdict"], scheme) for a in answers if a["logprobs"] is not None]
    verdicts = [answer["verdict"] for answer in answers if answer["logprobs"] is None]
    labels = len(scheme.codes)
    extra = (1 - SURE) / (SURE * labels - 1)  # solves (1 + extra) / (1 + labels extra) = SURE
    counts = np.asarray([verdicts.count(code) for code in scheme.codes])
    counted = (counts + extra) / (len(verdicts) + labels * extra)
    return np.asarray(np.mean([*known, *[counted] * len(verdicts)], axis=0))


def majority(verdicts: Sequence[str], soft: Sequence[np.ndarray], scheme: Scheme) -> tuple[str, int]:
    """Return the verdict of most answers, and how many answers have it.

    Of equally frequent verdicts the one with the higher mean log-probability wins, then the one given first.

    Args:
        verdicts: one for each answer, at least one.
        soft: the distribution over the labels of each answer.
    """
    logs = np.log(np.maximum(np.asarray(soft), 1e-9))
    log_mean: list[float] = np.round(logs.mean(axis=0), ROUNDED).tolist()
    votes = Counter(verdicts)
    vote = max(votes, key=lambda code: (votes[code], log_mean[scheme.index(code)]))
    return vote, votes[vote]


@dataclass(frozen=True)
class Wanted:
    """The verdict that answers to a pair must have to be kept, and their weight in training.

    It is the gold label, with weight 1. For an unlabelled pair it is the verdict of the majority, and the weight is the
    share of the answers that have it, failed answers included. Both are None if no answer has a verdict.
    """

    verdict: str | None
    weight: float | None
    labelled: bool


def wanted_verdicts(joined: AnsweredPairs, scheme: Scheme) -> dict[str, Wanted]:
    """Return the wanted verdict of each pair, by pair id."""
    pairs = zip(joined.pairs["pair_id"].to_pylist(), joined.pairs["label"].to_pylist(), strict=True)
    found = {pair_id: Wanted(label, 1.0 if label else None, label is not None) for pair_id, label in pairs}
    if all(wanted.labelled for wanted in found.values()):
        return found
    said: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in joined.answers.select(["pair_id", "verdict", "logprobs", "reason"]).to_pylist():
        if not found[row["pair_id"]].labelled:
            said[row["pair_id"]].append(row)
    return found | {pair_id: _voted(rows, scheme) for pair_id, rows in said.items()}


def _voted(rows: Sequence[dict[str, Any]], scheme: Scheme) -> Wanted:
    usable = [row for row in rows if row["reason"] is None]
    if not usable:
        return Wanted(None, None, False)
    soft = [distribution(row["logprobs"], row["verdict"], scheme) for row in usable]
    vote, votes = majority([row["verdict"] for row in usable], soft, scheme)
    return Wanted(vote, votes / len(rows), False)
