"""The label of each pair if macro-F1 is what counts, where the most probable label is nearly always the same one.

With labels as unlike in frequency as those of search, a calibrated student that is unsure says the most frequent label
of every pair. That is best for accuracy and the worst for macro-F1, so macro-F1 does not tell such students apart. The
label with the highest weighed probability, argmax of w_y p_y, is what is best for measures like macro-F1: Narasimhan et
al. 2015 (ICML, "Consistent multiclass algorithms for complex performance measures"), the plug-in classifier.

Shapes: N pairs, C labels.
"""

from __future__ import annotations

import numpy as np

from distill.metrics import metric_of_tables

STEPS = np.linspace(-4, 4, 65)  # logarithms of weights that are tried
ROUNDS = 4


def weighed_labels(gold: np.ndarray, probabilities: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the label number of each pair (N) by weights that are fitted on the pairs of all other folds.

    So neither the pair nor any other of its query is among those that its weights are fitted on, though the students
    that judged these have learnt from it.

    Args:
        gold: label numbers (N).
        probabilities: NxC.
        fold: which fold tests the pair (N), two folds at least.
    """
    said = np.empty(len(gold), int)
    for held in np.unique(fold):
        own = fold == held
        weights = fit_weights(gold[~own], probabilities[~own])
        said[own] = (np.log(probabilities[own]) + weights).argmax(1)
    return said


def fit_weights(gold: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the logarithms of the weights (C) with the best macro-F1, by one label after the other.

    It begins where all labels are equally frequent, and takes of equally good weights those in the middle.

    Args:
        gold: label numbers (N).
        probabilities: NxC.
    """
    logs = np.log(probabilities)
    shares = np.bincount(gold, minlength=logs.shape[1]) + 1.0
    weights = -np.log(shares / shares.sum())
    for _ in range(ROUNDS):
        before = weights.copy()
        for label in range(len(weights)):
            tried = np.repeat(weights[None], len(STEPS), 0)
            tried[:, label] += STEPS
            values = np.array([macro_f1(gold, (logs + one).argmax(1), len(weights)) for one in tried])
            weights = tried[np.flatnonzero(values >= values.max() - 1e-12)].mean(0)
        if np.allclose(weights, before):
            break
    return weights


def macro_f1(gold: np.ndarray, said: np.ndarray, labels: int) -> float:
    """Return the mean of F1 over the labels that are gold."""
    table = np.bincount(gold * labels + said, minlength=labels * labels).reshape(1, labels, labels)
    return float(metric_of_tables(table, "macro_f1")[0])
