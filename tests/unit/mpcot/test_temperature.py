from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mpcot.temperature import fit_over_queries, fit_temperature, fit_temperature_and_bias, scaled


def test_with_two_labels_the_fit_is_a_logistic_regression_on_the_log_odds() -> None:
    draw = np.random.default_rng(0)
    first = draw.uniform(0.05, 0.95, 400)
    gold = (draw.random(400) > first**0.6 * 0.7).astype(int).tolist()
    shares = np.stack([first, 1 - first], axis=1)
    fit = fit_temperature_and_bias(gold, shares)
    assert fit is not None
    temperature, bias = fit
    odds = np.log(shares[:, 1] / shares[:, 0])[:, None]
    other = LogisticRegression(C=1e9).fit(odds, gold)
    assert 1 / temperature == pytest.approx(other.coef_[0, 0], abs=2e-3)
    assert bias[1] - bias[0] == pytest.approx(other.intercept_[0], abs=2e-3)
    np.testing.assert_allclose(scaled(shares, temperature, bias), other.predict_proba(odds), atol=2e-3)


def answers(shares: list[list[float]], draw: np.random.Generator) -> tuple[list[int], np.ndarray]:
    """Return 40 gold labels per query, with its shares of them, and probabilities that say something of each."""
    gold = [int(label) for own in shares for label in draw.choice(2, 40, p=own)]
    return gold, scaled(np.eye(2)[gold] * 0.2 + draw.dirichlet([2, 2], len(gold)) * 0.8, 1.0)


def test_a_bias_is_fitted_only_where_other_queries_have_the_same_shares() -> None:
    draw = np.random.default_rng(1)
    queries = [f"q{number // 40}" for number in range(400)]
    gold, said = answers([[0.9, 0.1]] * 10, draw)  # more of the first label than the probabilities say
    assert fit_over_queries(gold, said, queries) == fit_temperature_and_bias(gold, said)
    gold, said = answers([[0.95, 0.05], [0.05, 0.95]] * 5, draw)  # each query has a label of its own
    temperature = fit_temperature(gold, said)
    assert fit_over_queries(gold, said, queries) == (temperature, ())
    assert fit_over_queries([], np.zeros((0, 2)), []) is None
