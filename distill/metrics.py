"""How well labels and probabilities fit the gold labels, by scikit-learn. A figure is None where it is undefined.

Shapes: N pairs, Q queries, C labels, S bootstrap samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import multimode
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from sklearn.metrics import (
    accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    ndcg_score,
    roc_auc_score,
)

from mpcot.schemes.scheme import Scheme

Metric = Literal["accuracy", "macro_f1"]
METRICS: tuple[Metric, ...] = get_args(Metric)
CALIBRATION_BINS = 15


def evaluate(
    gold: Sequence[str],
    probabilities: np.ndarray,
    query_ids: Sequence[str],
    scheme: Scheme,
    predicted: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return all metrics of one judge on one split, ready for JSON.

    Args:
        gold: N label codes.
        probabilities: NxC, in scheme order.
        query_ids: N.
        predicted: N label codes, if they are not the most probable ones, as with a vote.

    Returns: `pairs`, `accuracy`, `macro_f1`, `kappa`, `auc` (relevant or not), `ndcg_at_10`, `ndcg_queries`,
        `calibration_error`, `confusion` (rows gold, columns predicted, scheme order), `per_label`. A metric that
        is undefined, such as the AUC of a single class, is None.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64).reshape(len(gold), len(scheme.labels))
    if predicted is None:
        predicted = [scheme.codes[i] for i in probabilities.argmax(1)] if len(gold) else []
    ndcg, queries = ndcg_at(gold, probabilities, query_ids, scheme)
    return {
        "pairs": len(gold),
        **label_metrics(gold, predicted),
        "kappa": kappa(gold, predicted),
        "auc": relevance_auc(gold, probabilities, scheme),
        "ndcg_at_10": ndcg,
        "ndcg_queries": queries,
        "calibration_error": calibration_error(gold, predicted, probabilities, scheme),
        "confusion": confusion(gold, predicted, scheme).tolist(),
        "per_label": per_label(gold, predicted, scheme),
    }


def label_metrics(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, float | None]:
    """Return accuracy and macro-F1, which is the mean over the labels in gold.

    A label that is only predicted costs its precision nowhere but in the labels that it was said for. Counted as a
    label of its own, it would give two judges of the same pairs different denominators.
    """
    if not len(gold):
        return {"accuracy": None, "macro_f1": None}
    macro_f1 = f1_score(gold, predicted, labels=sorted(set(gold)), average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(gold, predicted)), "macro_f1": float(macro_f1)}


def kappa(gold: Sequence[str], predicted: Sequence[str], weights: Sequence[float] | None = None) -> float | None:
    """Return Cohen's kappa: 0 for an agreement as by chance, 1 for a perfect one; None if there is a single label."""
    if len({*gold, *predicted}) < 2:
        return None
    return float(cohen_kappa_score(gold, predicted, sample_weight=weights))


def rater_ceiling(ratings: Iterable[Sequence[str] | None]) -> dict[str, Any] | None:
    """Return how well one rater meets the label of the others, as a ceiling for every judge; None without such pairs.

    The label of the others is the one that most of them gave. Of equally frequent ones each counts in equal parts, and
    a pair counts once, however many raters it has.

    Args:
        ratings: the labels of each pair's raters; pairs with fewer than two are left out.

    Returns: `pairs`, `accuracy`, `kappa`.
    """
    several = [rated for rated in ratings if rated and len(rated) > 1]
    told: list[tuple[str, str, float]] = []
    for rated in several:
        for place, own in enumerate(rated):
            others = multimode([*rated[:place], *rated[place + 1 :]])
            told += [(label, own, 1 / len(others) / len(rated)) for label in others]
    if not told:
        return None
    labels, given, weights = zip(*told, strict=True)
    accuracy = float(accuracy_score(labels, given, sample_weight=weights))
    return {"pairs": len(several), "accuracy": accuracy, "kappa": kappa(labels, given, weights)}


def per_label(gold: Sequence[str], predicted: Sequence[str], scheme: Scheme) -> dict[str, dict[str, Any]]:
    """Return for each label the number of pairs, F1, and the shares that were rated `over` and `under` it.

    A label is over another that comes later in the scheme. F1 is None for a label that is neither gold nor predicted,
    the shares are None for one that is not gold.
    """
    seen, counts = {*gold, *predicted}, Counter(gold)
    codes = [code for code in scheme.codes if code in seen]
    scores = f1_score(gold, predicted, labels=codes, average=None, zero_division=0) if codes else []
    f1 = dict(zip(codes, map(float, scores), strict=True))
    table = confusion(gold, predicted, scheme)
    sides = {"over": np.tril(table, -1).sum(1), "under": np.triu(table, 1).sum(1)}
    return {
        code: {"pairs": counts[code], "f1": f1.get(code)}
        | {side: rows[i] / counts[code] if counts[code] else None for side, rows in sides.items()}
        for i, code in enumerate(scheme.codes)
    }


def confusion(gold: Sequence[str], predicted: Sequence[str], scheme: Scheme) -> np.ndarray:
    """Return counts CxC: rows gold, columns predicted."""
    if not len(gold):
        return np.zeros((len(scheme.labels),) * 2, int)
    return confusion_matrix(gold, predicted, labels=list(scheme.codes))


def relevance_auc(gold: Sequence[str], probabilities: np.ndarray, scheme: Scheme) -> float | None:
    """Return the area under the ROC curve of the probability of being relevant; None if there is only one class."""
    relevant = np.array([label.relevant for label in scheme.labels])
    truth = [scheme.labels[scheme.index(code)].relevant for code in gold]
    return float(roc_auc_score(truth, probabilities[:, relevant].sum(1))) if len(set(truth)) == 2 else None


def ndcg_at(
    gold: Sequence[str], probabilities: np.ndarray, query_ids: Sequence[str], scheme: Scheme, k: int = 10
) -> tuple[float | None, int]:
    """Return mean NDCG@k by expected gain over the queries whose products differ in gain, and their number."""
    gains = np.array(scheme.gains)
    truth = gains[np.array([scheme.index(code) for code in gold], int)]
    scores = probabilities @ gains
    queries = pd.Series(truth).groupby(np.asarray(query_ids, dtype=object), sort=False).indices.values()
    ranked = [rows for rows in queries if len(set(truth[rows])) > 1]
    values = [ndcg_score([truth[rows]], [scores[rows]], k=k) for rows in ranked]
    return (float(np.mean(values)) if values else None), len(ranked)


def calibration_error(
    gold: Sequence[str], predicted: Sequence[str], probabilities: np.ndarray, scheme: Scheme
) -> float | None:
    """Return the expected calibration error, Guo et al. 2017 (arXiv 1706.04599), eq. 3.

    It is the mean of |accuracy - confidence| over 15 equal bins of confidence, weighted by their pairs. Confidence is
    the probability of the predicted label.
    """
    if not len(gold):
        return None
    confidence = probabilities[np.arange(len(gold)), [scheme.index(code) for code in predicted]]
    right = np.asarray(gold) == np.asarray(predicted)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(gold))


def majority_baseline(train: Sequence[str], gold: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of always answering the most frequent training label, the first one seen among equals."""
    if not len(train):
        return {"label": None, "accuracy": None, "macro_f1": None}
    label = Counter(train).most_common(1)[0][0]
    return {"label": label, **label_metrics(gold, [label] * len(gold))}


def paired_bootstrap(
    gold: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    query_ids: Sequence[str],
    scheme: Scheme,
    metric: Metric = "accuracy",
    samples: int = 2000,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Return metric(second) - metric(first) with an interval from resampled queries.

    A percentile bootstrap over Q queries (Efron and Tibshirani 1993, chapter 13). Whole queries are resampled, because
    the pairs of one query are not independent.

    Returns: `difference`, `low`, `high`, `confidence`, `queries`, `samples`; the first three None without pairs.
    """
    report = {"confidence": confidence, "queries": len(set(query_ids)), "samples": samples}
    if not len(gold):
        return {"difference": None, "low": None, "high": None, **report}
    before, after = _resampled(gold, (first, second), query_ids, scheme, metric, samples, seed)
    return {**interval(after[0] - before[0], after[1] - before[1], confidence), **report}


def bootstrap(
    gold: Sequence[str],
    predicted: Sequence[str],
    query_ids: Sequence[str],
    scheme: Scheme,
    metric: Metric = "accuracy",
    samples: int = 2000,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Return a metric with an interval from resampled queries, as `paired_bootstrap` has of a difference.

    Returns: `value`, `low`, `high`, `confidence`, `samples`; the first three None without pairs.
    """
    report = {"confidence": confidence, "samples": samples}
    if not len(gold):
        return {"value": None, "low": None, "high": None, **report}
    ((whole, resampled),) = _resampled(gold, (predicted,), query_ids, scheme, metric, samples, seed)
    found = interval(whole, resampled, confidence)
    return {"value": found.pop("difference"), **found, **report}


def _resampled(
    gold: Sequence[str],
    predicted: Sequence[Sequence[str]],
    query_ids: Sequence[str],
    scheme: Scheme,
    metric: Metric,
    samples: int,
    seed: int,
) -> list[tuple[float, np.ndarray]]:
    """Return the metric of each of several predictions, on all pairs and, S, on resamples that they share."""
    queries, query = np.unique(np.asarray(query_ids, dtype=object).astype(str), return_inverse=True)
    draw = np.random.default_rng(seed)
    # Floats are exact for counts, and products of float matrices are quick.
    weights = draw.multinomial(len(queries), np.full(len(queries), 1 / len(queries)), size=samples).astype(float)  # SxQ
    tables = [_confusion_by_query(gold, own, query, len(queries), scheme) for own in predicted]
    return [
        (
            float(metric_of_tables(table.sum(0, keepdims=True), metric)[0]),
            metric_of_tables(np.tensordot(weights, table.astype(float), axes=1), metric),
        )
        for table in tables
    ]


def interval(difference: float, resampled: np.ndarray, confidence: float = 0.95) -> dict[str, float]:
    """Return the percentile interval of S resampled differences as `difference`, `low` and `high`."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return {"difference": difference, "low": float(low), "high": float(high)}


def _confusion_by_query(
    gold: Sequence[str], predicted: Sequence[str], query: np.ndarray, queries: int, scheme: Scheme
) -> np.ndarray:
    """Return confusion tables QxCxC; `query` has the number of each pair's query."""
    size = len(scheme.labels)
    rows, columns = (np.array([scheme.index(code) for code in codes], int) for codes in (gold, predicted))
    cells = (query * size + rows) * size + columns
    return np.bincount(cells, minlength=queries * size * size).reshape(queries, size, size)


def metric_of_tables(tables: np.ndarray, metric: Metric) -> np.ndarray:
    """Return accuracy or macro-F1 of confusion tables (rows gold), SxCxC -> S, as `label_metrics` does."""
    right = np.diagonal(tables, axis1=1, axis2=2)
    if metric == "accuracy":
        return right.sum(1) / tables.sum((1, 2))
    gold = tables.sum(2)
    f1 = np.divide(
        2 * right, gold + tables.sum(1), out=np.zeros(right.shape), where=gold > 0
    )  # 2 tp / (2 tp + fp + fn)
    return f1.sum(1) / (gold > 0).sum(1)
