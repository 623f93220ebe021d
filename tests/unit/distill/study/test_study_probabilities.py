"""A run's probabilities: kept in few characters, put together by seed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from distill.study.data import StudyPairs
from distill.study.probabilities import by_seed, packed, unpacked
from mpcot.schemes.scheme import load_scheme


def test_probabilities_are_kept_in_thousandths_and_are_small() -> None:
    given = np.random.default_rng(0).dirichlet(np.full(4, 0.5), 600)
    text = packed(given)
    found = unpacked(json.loads(json.dumps(text)), 4)
    assert len(text) < 7 * len(given) and np.abs(found - given).max() < 2e-3
    assert found.sum(1) == pytest.approx(np.ones(600)) and found.min() > 0
    assert unpacked(packed(np.array([[1.0, 0.0]])), 2)[0] == pytest.approx([1 / 1.0005, 0.0005 / 1.0005])


def test_folds_are_put_together_by_seed() -> None:
    tested = [{"fold": fold} for fold in (0, 1, 0)]
    pairs = StudyPairs(
        **{"fingerprint": "f", "model": "m", "scheme": load_scheme("binary"), "perspectives": (), "folds": 2},
        **{"seed": 1, "dev_pairs": 1, "tested": tested},
    )
    halves = {0: [[0.1, 0.9], [0.2, 0.8]], 1: [[0.3, 0.7]]}
    finals = [{"seed": 7, "fold": fold, "probabilities": packed(np.array(own))} for fold, own in halves.items()]
    found = by_seed(pairs, finals)
    assert list(found) == [7] and found[7][:, 0] == pytest.approx([0.1, 0.3, 0.2])
