"""Measures how well a judge is calibrated on test with the temperature that fits it on dev.

Shapes: N pairs, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distill.metrics import calibration_error
from mpcot.schemes.scheme import Scheme
from mpcot.temperature import fit_temperature, scaled


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
