"""What a student's explanations are worth, on cases that are counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from distill.report.explanation_quality import UNKNOWN, Cases, choose, explanation_quality

E, S = 0, 1
EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


def cases(latents: list[list[float]], texts: list[list[float]], verdicts: list[list[int]], labels: list[int]) -> Cases:
    """Pairs with one latent vector for all perspectives."""
    return Cases(np.array(latents)[:, None], np.array(texts), np.array(verdicts), np.array(labels))


# Three training pairs and two test pairs of two perspectives. By latent the tests are nearest to pairs 0 and 1, by
# query and title both are nearest to pair 2. The second perspective was silent on training pair 2 and on test pair 1.
TRAIN = cases([EAST, NORTH, WEST], [EAST, WEST, NORTH], [[E, E], [S, S], [S, UNKNOWN]], [E, S, E])
TEST = cases([[2, 0.1], [0.1, 3]], [[0.1, 1], [-0.1, 1]], [[E, S], [S, UNKNOWN]], [E, S])
STUDENT = np.array([[S, S], [S, E]])
LABELS = np.array([E, S])


def test_the_nearest_of_those_that_may_speak_is_chosen() -> None:
    assert choose(TRAIN.latents, TEST.latents, TRAIN.verdicts, None).tolist() == [[0, 0], [1, 1]]
    assert choose(TRAIN.texts, TEST.texts, TRAIN.verdicts, None).tolist() == [[2, 0], [2, 1]]
    # With the student's verdict: pair 0 has none for S, so the first test gets pair 1, and the second keeps it.
    assert choose(TRAIN.latents, TEST.latents, TRAIN.verdicts, STUDENT).tolist() == [[1, 1], [1, 0]]


def test_a_verdict_that_nobody_gave_leaves_all_to_choose_from() -> None:
    other = np.full((2, 2), 7)
    assert choose(TRAIN.latents, TEST.latents, TRAIN.verdicts, other).tolist() == [[0, 0], [1, 1]]
    silent = np.full((3, 2), UNKNOWN)
    assert choose(TRAIN.latents, TEST.latents, silent, STUDENT).tolist() == [[UNKNOWN] * 2] * 2


def test_each_perspective_looks_with_its_own_latent() -> None:
    own = np.array([[EAST, NORTH], [NORTH, EAST]])
    assert choose(own, np.array([[EAST, EAST]]), np.array([[E, E], [S, S]]), None).tolist() == [[0, 1]]


def test_quality_by_hand() -> None:
    found = explanation_quality(TRAIN, TEST, STUDENT, LABELS, np.array(["a", "b"]), lambda n, b, p: n == 0)
    assert found["pairs"] == 2
    # The teacher said E S and S: the student S S and S, its labels E E and S, the most frequent verdicts S E and S.
    assert found["verdicts"] == {
        "student": pytest.approx(2 / 3),
        "label": pytest.approx(2 / 3),
        "majority": pytest.approx(1 / 3),
    }
    shown = found["shown"]
    # By latent: pairs 0 0 and 1 say E E and S. With the student's verdict: 1 1 and 1, S S and S. Labels: E E S, S S S.
    assert shown["latent"] == pytest.approx({"verdict": 2 / 3, "label": 1.0, "true": 2 / 3})
    assert shown["latent_and_verdict"] == pytest.approx({"verdict": 2 / 3, "label": 1 / 3, "true": 0.0})
    # By query and title: pairs 2 0 and 2 say S E and S, and their labels are E E and E.
    assert shown["title"] == pytest.approx(
        {
            "verdict": 1 / 3,
            "label": 2 / 3,
            "true": 1 / 3,
        }
    )
    # Of the pairs labelled E the first perspective says E on one of two, the second E alone; of S it says S.
    assert shown["random"]["verdict"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert found["explanation_agreement"] == pytest.approx(2 / 3)
    assert found["explanation_gain_points"] == pytest.approx(100 / 3)


def test_the_interval_resamples_queries() -> None:
    """Query a gains both of its two verdicts and query b nothing of one, so draws of one query twice are the ends."""
    gains = explanation_quality(TRAIN, TEST, np.array([[E, S], [S, E]]), LABELS, np.array(["a", "b"]))
    assert gains["explanation_gain_points"] == pytest.approx(200 / 3)
    assert gains["explanation_gain_points_low"] == 0 and gains["explanation_gain_points_high"] == pytest.approx(100)


def test_without_the_teachers_verdicts_there_is_nothing_to_measure() -> None:
    silent = TEST._replace(verdicts=np.full((2, 2), UNKNOWN))
    assert explanation_quality(TRAIN, silent, STUDENT, LABELS, np.array(["a", "b"])) == {"pairs": 0}
