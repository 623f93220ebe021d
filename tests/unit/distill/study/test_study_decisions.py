"""Labels that are said where macro-F1 counts: by weights of other folds, and better than always the same label."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from distill.study.decisions import fit_weights, macro_f1, weighed_labels


def unsure(count: int) -> tuple[np.ndarray, np.ndarray]:
    """A judge that leans towards the gold label and still finds label 0, of 70 % of the pairs, the most probable."""
    draw = np.random.default_rng(4)
    gold = draw.choice(3, count, p=(0.7, 0.2, 0.1))
    logits = np.log([0.7, 0.2, 0.1]) + 0.5 * np.eye(3)[gold] + 0.3 * draw.normal(size=(count, 3))
    odds = np.exp(logits)
    return gold, odds / odds.sum(1, keepdims=True)


def test_macro_f1_is_that_of_scikit_learn() -> None:
    draw = np.random.default_rng(1)
    gold, said = draw.integers(0, 3, 50), draw.integers(0, 4, 50)
    assert macro_f1(gold, said, 4) == pytest.approx(f1_score(gold, said, labels=[0, 1, 2], average="macro"))


def test_weights_tell_labels_apart_that_the_most_probable_one_does_not() -> None:
    gold, probabilities = unsure(2000)
    plain = macro_f1(gold, probabilities.argmax(1), 3)
    weighed = macro_f1(gold, weighed_labels(gold, probabilities, np.arange(2000) % 2), 3)
    assert plain < 0.4 and weighed > plain + 0.2


def test_a_pair_has_no_part_in_its_own_decision() -> None:
    gold, probabilities = unsure(300)
    fold = np.arange(300) % 3
    before = weighed_labels(gold, probabilities, fold)
    other = np.where(fold == 1, (gold + 1) % 3, gold)
    after = weighed_labels(other, probabilities, fold)
    np.testing.assert_array_equal(before[fold == 1], after[fold == 1])
    assert (before != after).any()


def test_of_equally_good_weights_those_in_the_middle_are_taken() -> None:
    gold = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.8, 0.2], [0.7, 0.3], [0.3, 0.7], [0.2, 0.8]])
    weights = fit_weights(gold, probabilities)
    assert abs(weights[0] - weights[1]) < 0.5
    np.testing.assert_array_equal((np.log(probabilities) + weights).argmax(1), gold)
