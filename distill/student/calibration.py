"""Calibrates judges on dev as serving does, and measures how well calibrated they are on test.

Shapes: N pairs, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill.metrics import calibration_error
from mpcot.schemes.scheme import Scheme
from mpcot.temperature import fit_served, fit_temperature, scaled


def calibrated(
    dev: tuple[Sequence[str], np.ndarray], gold: Sequence[str], predicted: Sequence[str], probabilities: np.ndarray,
    scheme: Scheme,
) -> dict[str, Any]:  # fmt: skip
    """Fit a temperature on dev and measure the calibration error on test with it.

    Args:
        dev: label codes and probabilities of the pairs to fit on.
        gold, predicted: N label codes.
        probabilities: NxC.

    Returns: `temperature`, `temperature_pairs` (how many it was fitted on) and `calibrated_error`, the expected
        calibration error with it. The first is None without dev pairs, the last without dev or test pairs.
    """
    dev_gold, dev_probabilities = dev
    temperature = fit_temperature([scheme.index(code) for code in dev_gold], dev_probabilities)
    error = None
    if temperature is not None and len(gold):
        error = calibration_error(gold, predicted, scaled(probabilities, temperature), scheme)
    return {"temperature": temperature, "temperature_pairs": len(dev_gold), "calibrated_error": error}


def with_biases(
    answers: Mapping[str, dict[str, Any]], pairs: Mapping[str, dict[str, Any]], scheme: Scheme
) -> dict[str, dict[str, Any]]:
    """Return a student's predictions by pair id with the temperature and the bias per label that fit it on dev.

    The most probable label is then the `label`, which may be another one than before.
    """
    probabilities = np.array([row["probabilities"] for row in answers.values()]).reshape(-1, len(scheme.codes))
    dev = [n for n, i in enumerate(answers) if pairs[i]["split"] == "dev"]
    gold = [scheme.index(pairs[i]["label"]) for i in answers if pairs[i]["split"] == "dev"]
    served = scaled(probabilities, *fit_served("temperature+bias", gold, probabilities[dev]))
    return {
        i: row | {"label": scheme.codes[own.argmax()], "probabilities": own.tolist()}
        for (i, row), own in zip(answers.items(), served, strict=True)
    }
