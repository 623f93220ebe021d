"""Measures what a student's latent vectors are good for beside the label: how well it explains a pair.

For a test pair that the teacher judged too, is the student's verdict from a perspective the teacher's, and does the
training rationale that is shown beside it (`distill.student.rationale_index`) argue for what the teacher said?

Shapes: N pairs of a `Cases`, B test pairs, P perspectives, L latent vectors (P, or 1), D their width, E that of a
sentence embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from distill.metrics import interval
from distill.student.rationale_index import speaking, unit

UNKNOWN = -1  # a verdict or label that is not there
# How a training rationale is chosen for a test pair, by name: nearest by which vectors, and whether among the training
# pairs alone whose verdict is the student's.
WAYS = {
    "latent_and_verdict": ("latents", True),
    "latent": ("latents", False),
    "title_and_verdict": ("texts", True),
    "title": ("texts", False),
}
TrueOf = Callable[[int, int, int], bool]


class Cases(NamedTuple):
    """Pairs as the student and the teacher see them; numbers of labels, or `UNKNOWN`.

    `latents` NxLxD are the student's, `texts` NxE the embeddings of query and title by a frozen encoder, `verdicts` NxP
    the teacher's, and `labels` N the gold ones.
    """

    latents: np.ndarray
    texts: np.ndarray
    verdicts: np.ndarray
    labels: np.ndarray


def explanation_quality(
    train: Cases,
    test: Cases,
    student_verdicts: np.ndarray,
    student_labels: np.ndarray,
    queries: np.ndarray,
    true_of: TrueOf | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return how often the student's verdicts and the rationales shown with them are what the teacher said.

    Args:
        student_verdicts: BxP label numbers, from the heads of the perspectives.
        student_labels: B label numbers, the student's answers to the pairs.
        queries: B ids; the interval resamples them.
        true_of: says whether the rationale of training pair n from perspective p is true of test pair b, given n, b, p.

    Returns: `pairs`; shares of the test pair's perspectives: `verdicts` (the teacher's verdict is the student's, the
        student's label, or the most frequent one in training), `shown` by way of choosing (the shown rationale carries
        the teacher's `verdict`, its pair the gold `label`, and it is `true` of the pair), where `random` is what a
        rationale of a pair with the same gold label gives; `explanation_agreement`, that of `latent_and_verdict`, and
        `explanation_gain_points`, by how many points it is above that of `title`, with `_low` and `_high`.
    """
    judged = test.verdicts != UNKNOWN
    if not judged.any() or not (train.verdicts != UNKNOWN).any():
        return {"pairs": 0}
    usual = [_most_frequent(column) for column in train.verdicts.T]
    said = {"student": student_verdicts, "label": student_labels[:, None], "majority": np.array(usual)[None]}
    verdicts = {name: float((given == test.verdicts)[judged].mean()) for name, given in said.items()}
    wanted = {True: student_verdicts, False: None}
    chosen = {
        way: choose(getattr(train, vectors), getattr(test, vectors), train.verdicts, wanted[own])
        for way, (vectors, own) in WAYS.items()
    }
    hits = {way: _carried(rows, train.verdicts, test.verdicts) for way, rows in chosen.items()}
    shown = {way: _shown(rows, hits[way], train, test, true_of) for way, rows in chosen.items()}
    shown["random"] = {"verdict": _of_the_same_label(train, test), "label": 1.0, "true": None}
    return {
        "pairs": int(judged.any(1).sum()),
        "verdicts": verdicts,
        "shown": shown,
        "explanation_agreement": shown["latent_and_verdict"]["verdict"],
        **_gain(hits["latent_and_verdict"] - hits["title"], judged, queries, samples, seed),
    }


def choose(train: np.ndarray, test: np.ndarray, verdicts: np.ndarray, wanted: np.ndarray | None) -> np.ndarray:
    """Return BxP numbers of the training pairs whose rationales are shown, `UNKNOWN` where a perspective has none.

    Args:
        train, test: vectors NxLxD and BxLxD of each perspective, or NxE and BxE of all.
        verdicts: NxP, the teacher's.
        wanted: BxP, the verdict that the shown rationale should have; None for any.
    """
    first, second = (vectors[:, None] if vectors.ndim == 2 else vectors for vectors in (train, test))
    found = np.full((len(test), verdicts.shape[1]), UNKNOWN)
    for p, given in enumerate(verdicts.T):
        layer = p if first.shape[1] > 1 else 0
        allowed = speaking(given != UNKNOWN, given, None if wanted is None else wanted[:, p], len(test))
        similar = np.where(allowed, unit(second[:, layer]) @ unit(first[:, layer]).T, -np.inf)
        found[:, p] = np.where(allowed.any(1), similar.argmax(1), UNKNOWN)
    return found


def _most_frequent(verdicts: np.ndarray) -> int:
    known = verdicts[verdicts != UNKNOWN]
    return int(np.bincount(known).argmax()) if len(known) else UNKNOWN


def _carried(rows: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return BxP: 1 where the chosen rationale has the test pair's verdict, else 0."""
    return ((rows != UNKNOWN) & (train[rows, np.arange(train.shape[1])] == test)).astype(float)


def _shown(
    rows: np.ndarray, carried: np.ndarray, train: Cases, test: Cases, true_of: TrueOf | None
) -> dict[str, float | None]:
    judged = test.verdicts != UNKNOWN
    places = [(b, p) for b, p in np.argwhere(judged & (rows != UNKNOWN)).tolist()]
    labelled = judged & (test.labels != UNKNOWN)[:, None]
    alike = (train.labels[rows] == test.labels[:, None]) & (rows != UNKNOWN)
    true = [true_of(int(rows[b, p]), b, p) for b, p in places] if true_of else []
    return {
        "verdict": float(carried[judged].mean()),
        "label": float(alike[labelled].mean()) if labelled.any() else None,
        "true": float(np.mean(true)) if true else None,
    }


def _of_the_same_label(train: Cases, test: Cases) -> float | None:
    """Return the expected share of `verdict` if a rationale is drawn of the pairs with the test pair's gold label."""
    shares = []
    for b, p in np.argwhere((test.verdicts != UNKNOWN) & (test.labels != UNKNOWN)[:, None]):
        drawn = train.verdicts[train.labels == test.labels[b], p]
        drawn = drawn[drawn != UNKNOWN]
        if len(drawn):
            shares.append(float((drawn == test.verdicts[b, p]).mean()))
    return float(np.mean(shares)) if shares else None


def _gain(
    difference: np.ndarray, judged: np.ndarray, queries: np.ndarray, samples: int, seed: int
) -> Mapping[str, float]:
    """Return the mean difference in points with a percentile interval over resampled queries."""
    names, query = np.unique(np.asarray(queries, dtype=str), return_inverse=True)
    sums = np.bincount(query, weights=np.where(judged, difference, 0).sum(1), minlength=len(names))
    counts = np.bincount(query, weights=judged.sum(1), minlength=len(names))
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    resampled = (draws @ sums) / np.maximum(draws @ counts, 1)
    found = interval(float(sums.sum() / counts.sum()), resampled)
    ends = {"": "difference", "_low": "low", "_high": "high"}
    return {f"explanation_gain_points{end}": 100 * found[name] for end, name in ends.items()}
