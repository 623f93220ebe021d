"""The population stability index beside values worked out by hand, and how it is read."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from serve.watching.psi import by_chance, psi, reading

DEV = np.array([100, 300, 600])


def test_the_index_of_two_bins_by_hand() -> None:
    """30 and 70 beside 50 and 50: with half a pair more in each bin the shares are 30.5/101 and 70.5/101."""
    by_hand = (30.5 - 50.5) / 101 * log(30.5 / 50.5) + (70.5 - 50.5) / 101 * log(70.5 / 50.5)
    assert psi(np.array([50, 50]), np.array([30, 70])) == pytest.approx(by_hand, abs=1e-12)
    assert by_hand == pytest.approx(0.1659, abs=1e-4)


def test_equal_shares_have_none_whatever_their_numbers() -> None:
    assert psi(DEV, DEV) == 0
    assert psi(DEV, 20 * DEV) == pytest.approx(0, abs=1e-4)


def test_an_empty_bin_is_finite_and_one_that_is_empty_in_both_says_nothing() -> None:
    gone = psi(DEV, np.array([0, 400, 600]))
    assert np.isfinite(gone) and gone > 0.25
    assert psi(np.append(DEV, 0), np.append(20 * DEV, 0)) == psi(DEV, 20 * DEV)


def test_chance_exceeds_its_bound_once_in_twenty_times() -> None:
    draw = np.random.default_rng(3)
    shares, found = [0.2, 0.3, 0.1, 0.25, 0.15], []
    for _ in range(2000):
        dev, served = draw.multinomial(800, shares), draw.multinomial(2000, shares)
        found.append(psi(dev, served) > by_chance(dev, served))
    assert np.mean(found) == pytest.approx(0.05, abs=0.02)
    assert by_chance(DEV, np.zeros(3, int)) == 0


@pytest.mark.parametrize(
    ("value", "chance", "pairs", "expected"),
    [
        (0.05, 0.01, 5000, "stable"),
        (0.1, 0.01, 5000, "look"),
        (0.25, 0.01, 5000, "look"),
        (0.26, 0.01, 5000, "changed"),
        (0.12, 0.15, 5000, "too few pairs"),
        (0.5, 0.15, 5000, "changed"),
        (0.5, 0.01, 299, "too few pairs"),
    ],
)
def test_readings(value: float, chance: float, pairs: int, expected: str) -> None:
    assert reading(value, chance, pairs) == expected
