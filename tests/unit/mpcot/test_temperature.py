from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mpcot.temperature import fit_temperature_and_bias, scaled


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
