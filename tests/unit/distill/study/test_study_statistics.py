"""Figures by hand and against scikit-learn; resamples of queries and seeds; tests and their correction."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

from distill.study.statistics import Gold, Scores, figures_of, gain, holm, judged, scores, weighted_auc
from mpcot.schemes.scheme import load_scheme

ESCI, BINARY = load_scheme("esci"), load_scheme("binary")


def drawn(pairs: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    draw = np.random.default_rng(seed)
    return list(draw.choice(list(ESCI.codes), pairs)), draw.dirichlet(np.ones(4), pairs)


def test_figures_are_those_of_scikit_learn_with_pairs_that_count_twice() -> None:
    gold, probabilities = drawn(60)
    weights = np.random.default_rng(1).integers(0, 3, (2, 60)).astype(float)
    weighed = np.random.default_rng(2).integers(0, 4, 60)
    found = figures_of(Gold.of(gold, range(60), ESCI), probabilities, weights, weighed)
    said = [ESCI.codes[i] for i in probabilities.argmax(1)]
    relevant = [label.relevant for label in ESCI.labels]
    truth = [relevant[ESCI.index(code)] for code in gold]
    columns = [ESCI.codes.index(code) for code in sorted(ESCI.codes)]
    for row, own in enumerate(weights):
        expected = {
            "log_loss": log_loss(gold, probabilities[:, columns], labels=sorted(ESCI.codes), sample_weight=own),
            "auc": roc_auc_score(truth, probabilities[:, relevant].sum(1), sample_weight=own),
            "macro_f1": f1_score(gold, said, average="macro", sample_weight=own),
            "macro_f1_weighed": f1_score(gold, [ESCI.codes[i] for i in weighed], average="macro", sample_weight=own),
            "accuracy": accuracy_score(gold, said, sample_weight=own),
        }
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected)


def test_macro_f1_has_the_labels_in_gold_as_denominator() -> None:
    # Gold E E S. E is right once of two (F1 2/3), S is right (F1 1 or 2/3); C, which is only said, does not count.
    tested, once = Gold.of(["E", "E", "S"], range(3), ESCI), np.ones((1, 3))
    with_c, with_s = (np.eye(4)[[0, other, 1]] * 0.9 + 0.025 for other in (2, 1))
    assert figures_of(tested, with_c, once)["macro_f1"][0] == pytest.approx((2 / 3 + 1) / 2)
    assert figures_of(tested, with_s, once)["macro_f1"][0] == pytest.approx(2 / 3)


def test_auc_of_ties_and_of_one_class() -> None:
    truth, score = np.array([True, False, True, False]), np.array([0.5, 0.5, 0.9, 0.1])
    # Of four (relevant, not) pairs three are in order and one is tied.
    assert weighted_auc(truth, score, np.ones((1, 4)))[0] == pytest.approx(3.5 / 4)
    assert np.isnan(weighted_auc(truth, score, np.array([[1.0, 0, 1, 0]]))).all()


def test_whole_queries_are_drawn_for_all_rows_alike() -> None:
    tested = Gold.of(["1", "0", "1"], ["q", "q", "r"], BINARY)
    weights = np.concatenate(list(tested.draws(700, 5)))
    assert weights.shape == (700, 3) and (weights[:, 0] == weights[:, 1]).all()
    assert set(weights[:, 0] + weights[:, 2]) == {2.0}, "two queries are drawn each time"
    assert weights[:, 0].mean() == pytest.approx(1, abs=0.1)
    assert (np.concatenate(list(tested.draws(700, 5))) == weights).all()


def certain(answers: str) -> np.ndarray:
    return np.eye(2)[[BINARY.index(code) for code in answers]] * 0.98 + 0.01


def test_a_gain_by_hand_over_the_seeds_in_common() -> None:
    tested = Gold.of(list("1100"), range(4), BINARY)
    first = scores(tested, {1: certain("1111"), 2: certain("1110")}, 400, 3)
    second = scores(tested, {1: certain("1110"), 2: certain("1100"), 3: certain("0011")}, 400, 3)
    found, samples = gain(first, second, "accuracy", 3)
    assert found == pytest.approx(1 / 4) and samples.mean() == pytest.approx(1 / 4, abs=0.03)
    less, _ = gain(first, second, "log_loss", 3)
    # One pair in four becomes right: log .01 becomes log .99, and less loss is a gain.
    assert less == pytest.approx(np.log(0.99 / 0.01) / 4)


def test_the_interval_knows_that_seeds_differ() -> None:
    # Seeds swing by 1 in two directions on all queries: over queries alone nothing would vary.
    swinging = np.array([0.4, 0.6])
    row = Scores((1, 2), {"auc": swinging}, {"auc": np.repeat(swinging[:, None], 4000, 1)})
    flat = Scores((1, 2), {"auc": np.full(2, 0.5)}, {"auc": np.full((2, 4000), 0.5)})
    whole, samples = gain(flat, row, "auc", 0)
    assert whole == pytest.approx(0)
    # Both seeds are drawn with 1/2, one of them alone with 1/4 each.
    values, counts = np.unique(np.round(samples, 6), return_counts=True)
    assert values == pytest.approx([-0.1, 0, 0.1]) and counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_intervals_cover_what_queries_and_seeds_may_be() -> None:
    """The gain of a judge with an effect per query and one per seed, of mean 0, is covered about as often as said."""
    draw, hits = np.random.default_rng(0), 0
    for number in range(150):
        by_query, by_seed = draw.normal(size=40), draw.normal(size=10) / 4
        counts = np.random.default_rng(number).multinomial(40, np.full(40, 1 / 40), 400)
        effects = by_seed[:, None] + (counts @ by_query / 40)[None]
        row = Scores(tuple(range(10)), {"auc": by_seed + by_query.mean()}, {"auc": effects})
        none = Scores(row.seeds, {"auc": np.zeros(10)}, {"auc": np.zeros((10, 400))})
        said = judged(gain(none, row, "auc", number), 0.01)
        assert said is not None
        hits += said["low"] <= 0 <= said["high"]
    assert 0.88 <= hits / 150 <= 0.99


def test_what_a_gain_says_by_hand() -> None:
    samples = np.arange(-1.0, 100.0) / 100  # 101 values, two of which are not above 0
    said = judged((0.5, samples), 0.95)
    assert said is not None
    assert said["low"] == pytest.approx(0.015) and said["high"] == pytest.approx(0.965)
    assert said["p"] == pytest.approx(2 * (1 + 2) / 102)
    assert said["bound"] == pytest.approx(0.94) and said["equal"]
    assert not judged((0.5, samples), 0.93)["equal"]  # type: ignore[index]
    assert judged((float("nan"), samples), 1) is None


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .04 times 4 3 2 1 is .04 .06 .06 .04, and no value falls behind one before it.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and holm([]) == []
