from __future__ import annotations

import math

import numpy as np
import pytest

from distill.metrics import calibration_error
from distill.student.calibration import calibrated, with_biases
from mpcot.schemes.scheme import load_scheme
from mpcot.temperature import (
    LEAST,
    MOST,
    MOST_BIAS,
    fit_served,
    fit_temperature,
    fit_temperature_and_bias,
    scaled,
)

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


def test_biases_give_every_label_its_share() -> None:
    # Two answers to six pairs each. With free odds per label the probabilities can be the shares themselves.
    probabilities = np.repeat([[0.8, 0.2], [0.4, 0.6]], 6, axis=0)
    gold = [0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1]
    found = fit_temperature_and_bias(gold, probabilities)
    assert found is not None
    temperature, bias = found
    np.testing.assert_allclose(
        scaled(probabilities, temperature, bias)[[0, 6]], [[1 / 2, 1 / 2], [1 / 6, 5 / 6]], atol=1e-3
    )
    # log odds: a log 4 + b = 0 and a log(2/3) + b = log(1/5), with b the difference of the biases.
    a = math.log(5) / (math.log(4) - math.log(2 / 3))
    assert temperature == pytest.approx(1 / a, rel=1e-2) and sum(bias) == pytest.approx(0, abs=1e-6)
    assert bias[0] - bias[1] == pytest.approx(-a * math.log(4), rel=1e-2)


def test_a_label_that_never_occurs_has_a_bounded_bias() -> None:
    found = fit_temperature_and_bias([0, 0, 1], np.full((3, 3), 1 / 3))
    assert found is not None and found[1][2] == -MOST_BIAS
    assert fit_temperature_and_bias([], np.zeros((0, 3))) is None


def test_which_calibration_is_fitted() -> None:
    probabilities, gold = np.tile([0.9, 0.1], (9, 1)), [0] * 6 + [1] * 3
    assert fit_served("none", gold, probabilities) == (1.0, ())
    assert fit_served("temperature", gold, probabilities) == (fit_temperature(gold, probabilities), ())
    assert len(fit_served("temperature+bias", gold, probabilities)[1]) == 2
    assert fit_served("temperature+bias", [], np.zeros((0, 2))) == (1.0, ())


def test_a_students_answers_with_their_biases() -> None:
    # The student says yes to all, surer where it is right; half of the dev pairs are no.
    said = {f"{split}{n}": {"label": YES, "probabilities": [0.9 - 0.3 * (n % 2), 0.1 + 0.3 * (n % 2)], "verdicts": None}
            for split in ("dev", "test") for n in range(20)}  # fmt: skip
    pairs = {i: {"split": i[:-1].rstrip("0123456789"), "label": (YES, NO)[int(i[-1]) % 2]} for i in said}
    pairs["dev0"]["label"], pairs["dev1"]["label"] = NO, YES
    found = with_biases(said, pairs, BINARY)
    assert list(found) == list(said) and found["test4"]["label"] == YES and found["test5"]["label"] == NO
    assert found["test4"]["probabilities"][0] == pytest.approx(0.9, abs=1e-3)
    assert found["test5"]["probabilities"][0] == pytest.approx(0.1, abs=1e-3)


def test_what_dev_teaches_is_measured_on_test() -> None:
    probabilities = np.tile([0.9, 0.1], (9, 1))
    gold = [YES] * 6 + [NO] * 3
    found = calibrated((gold, probabilities), gold, [YES] * 9, probabilities, BINARY)
    assert calibration_error(gold, [YES] * 9, probabilities, BINARY) == pytest.approx(0.9 - 2 / 3)
    assert found["calibrated_error"] == pytest.approx(0, abs=1e-3) and found["temperature_pairs"] == 9
    none = calibrated(([], np.zeros((0, 2))), gold, [YES] * 9, probabilities, BINARY)
    assert none == {"temperature": None, "temperature_pairs": 0, "calibrated_error": None}
    assert calibrated((gold, probabilities), [], [], np.zeros((0, 2)), BINARY)["calibrated_error"] is None
