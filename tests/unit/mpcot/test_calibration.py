from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mpcot.temperature import Calibration, fit_calibration


def log_loss(gold: list[int], probabilities: np.ndarray) -> float:
    return float(-np.log(probabilities[np.arange(len(gold)), gold]).mean())


def test_an_undecided_judge_gets_the_shares_of_the_labels() -> None:
    fit = fit_calibration([0, 0, 0, 1], np.full((4, 2), 0.5))
    assert fit is not None
    assert fit.apply([0.5, 0.5]) == pytest.approx([0.75, 0.25], abs=1e-4)
    assert sum(fit.bias) == pytest.approx(0) and fit.bias[0] - fit.bias[1] == pytest.approx(np.log(3), abs=1e-3)


def test_two_labels_are_a_logistic_regression_on_the_log_odds() -> None:
    draw = np.random.default_rng(0)
    first = draw.uniform(0.05, 0.95, 400)
    gold = (draw.random(400) > first**0.6 * 0.7).astype(int).tolist()
    shares = np.stack([first, 1 - first], axis=1)
    fit = fit_calibration(gold, shares)
    assert fit is not None
    odds = np.log(shares[:, 1] / shares[:, 0])[:, None]
    other = LogisticRegression(C=1e9).fit(odds, gold)
    assert 1 / fit.temperature == pytest.approx(other.coef_[0, 0], abs=2e-3)
    assert fit.bias[1] - fit.bias[0] == pytest.approx(other.intercept_[0], abs=2e-3)
    made = np.array([fit.apply(row) for row in shares])
    np.testing.assert_allclose(made, other.predict_proba(odds), atol=2e-3)
    assert log_loss(gold, made) < log_loss(gold, shares)


def test_a_label_that_no_pair_has_stays_possible() -> None:
    fit = fit_calibration([0] * 5 + [1] * 5, np.full((10, 3), 1 / 3))
    assert fit is not None and 0 < fit.apply([1 / 3] * 3)[2] < 0.01


def test_without_pairs_there_is_no_fit_and_nothing_changes() -> None:
    assert fit_calibration([], np.zeros((0, 3))) is None
    assert Calibration().apply([0.2, 0.8]) == [0.2, 0.8]


def test_a_sure_judge_has_no_infinite_numbers() -> None:
    assert Calibration(temperature=2.0, bias=(0.0, 0.0)).apply([1.0, 0.0]) == pytest.approx([1, 1e-6], abs=1e-6)
