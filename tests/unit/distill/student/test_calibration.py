from __future__ import annotations

import math

import numpy as np
import pytest

from distill.metrics import calibration_error
from distill.student.calibration import calibrated
from mpcot.schemes.scheme import load_scheme
from mpcot.temperature import LEAST, MOST, fit_temperature, scaled

BINARY = load_scheme("binary")
YES, NO = BINARY.codes


def test_scaling_is_that_of_logits() -> None:
    logits = np.array([[2.0, 0.5, -1.0], [0.0, 3.0, 0.0]])

    def softmax(values: np.ndarray) -> np.ndarray:
        return np.exp(values) / np.exp(values).sum(1, keepdims=True)

    np.testing.assert_allclose(scaled(softmax(logits), 2.5), softmax(logits / 2.5))
    np.testing.assert_allclose(scaled(softmax(logits), 1.0), softmax(logits))


def test_certain_probabilities_stay_numbers() -> None:
    found = scaled(np.array([[1.0, 0.0]]), 0.05)
    assert np.isfinite(found).all() and found.sum() == pytest.approx(1)


def test_a_temperature_by_hand() -> None:
    # Nine sure answers of 0.9, two in three of them right: 9^(1/T) / (9^(1/T) + 1) = 2/3, so 9^(1/T) = 2.
    probabilities = np.tile([0.9, 0.1], (9, 1))
    assert fit_temperature([0] * 6 + [1] * 3, probabilities) == pytest.approx(math.log(9) / math.log(2), rel=1e-3)


def test_always_right_or_always_wrong_stays_within_bounds() -> None:
    probabilities = np.tile([0.9, 0.1], (9, 1))
    sure, unsure = fit_temperature([0] * 9, probabilities), fit_temperature([1] * 9, probabilities)
    assert sure is not None and LEAST <= sure < 1.1 * LEAST
    assert unsure is not None and 0.9 * MOST < unsure <= MOST
    assert fit_temperature([], np.zeros((0, 2))) is None


def test_what_dev_teaches_is_measured_on_test() -> None:
    probabilities = np.tile([0.9, 0.1], (9, 1))
    gold = [YES] * 6 + [NO] * 3
    found = calibrated((gold, probabilities), gold, [YES] * 9, probabilities, BINARY)
    assert calibration_error(gold, [YES] * 9, probabilities, BINARY) == pytest.approx(0.9 - 2 / 3)
    assert found["calibrated_error"] == pytest.approx(0, abs=1e-3) and found["temperature_pairs"] == 9
    none = calibrated(([], np.zeros((0, 2))), gold, [YES] * 9, probabilities, BINARY)
    assert none == {"temperature": None, "temperature_pairs": 0, "calibrated_error": None}
    assert calibrated((gold, probabilities), [], [], np.zeros((0, 2)), BINARY)["calibrated_error"] is None
