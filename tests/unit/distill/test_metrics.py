from __future__ import annotations

import json
import math

import numpy as np
import pytest

from distill.metrics import (
    bootstrap,
    calibration_error,
    evaluate,
    kappa,
    label_metrics,
    majority_baseline,
    ndcg_at,
    paired_bootstrap,
    per_label,
    rater_ceiling,
    relevance_auc,
)
from mpcot.schemes.scheme import load_scheme

ESCI = load_scheme("esci")
BINARY = load_scheme("binary")
YES, NO = BINARY.codes


def certain(codes: list[str]) -> np.ndarray:
    return np.eye(len(ESCI.codes))[[ESCI.index(code) for code in codes]]


def test_a_perfect_judge() -> None:
    gold = ["E", "S", "C", "I"]
    figures = evaluate(gold, certain(gold), ["q", "q", "r", "r"], ESCI)
    assert figures["accuracy"] == figures["macro_f1"] == figures["auc"] == 1
    assert figures["calibration_error"] == 0 and figures["confusion"] == np.eye(4, dtype=int).tolist()
    assert figures["ndcg_at_10"] == pytest.approx(1) and figures["kappa"] == 1
    assert figures["per_label"]["C"] == {"pairs": 1, "f1": 1.0, "over": 0, "under": 0}


def test_macro_f1_by_hand() -> None:
    # E: precision 2/3, recall 1 -> 0.8. S: recall 0 -> 0. C and I never occur and do not count.
    figures = label_metrics(["E", "E", "S"], ["E", "E", "E"])
    assert figures == {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx(0.4)}


def test_two_judges_of_the_same_pairs_have_the_same_labels_in_their_macro_f1() -> None:
    # Both have 2 of 3 right and E's F1 is 0.8 and 2/3. A wrong C is no label of its own, so the mean is over E and S.
    gold, first, second = ["E", "E", "S"], ["E", "E", "E"], ["E", "C", "S"]
    assert label_metrics(gold, second)["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    found = paired_bootstrap(gold, first, second, ["q", "q", "q"], ESCI, metric="macro_f1", samples=3)
    assert found["difference"] == found["low"] == found["high"] == pytest.approx((2 / 3 + 1) / 2 - 0.4)


def test_kappa_by_hand() -> None:
    # Three of four agree. Chance alone gives 1/2 * 3/4 + 1/2 * 1/4 = 1/2, so kappa is (3/4 - 1/2) / (1 - 1/2).
    assert kappa([YES, YES, NO, NO], [YES, YES, YES, NO]) == pytest.approx(0.5)
    assert kappa([YES, NO], [NO, YES]) == pytest.approx(-1)
    assert kappa([YES, YES], [YES, YES]) is None, "with a single label, chance is never wrong"


def test_over_and_under_follow_the_order_of_the_scheme() -> None:
    found = per_label(["S", "S", "S", "S", "E", "I"], ["E", "C", "I", "S", "S", "C"], ESCI)
    assert {code: (row["over"], row["under"]) for code, row in found.items()} == {
        "E": (0, 1), "S": (0.25, 0.5), "C": (None, None), "I": (1, 0),
    }  # fmt: skip


def test_one_rater_beside_the_others() -> None:
    # 2 2 0: each 2 sees one of either label, a half; 0 sees two of 2. Together 1 of 3. 3 3 3 is 3 of 3, 1 0 is none.
    found = rater_ceiling([["2", "2", "0"], ["3", "3", "3"], ["1", "0"], ["1"], None])
    assert found == {"pairs": 3, "accuracy": pytest.approx((1 / 3 + 1 + 0) / 3), "kappa": pytest.approx(found["kappa"])}
    # By label as (others, own): 2 2, 2 0 (twice), 0 2, 3 3, 1 0, 0 1, each with its share of a pair.
    others = {"2": 1 / 3 + 1 / 3, "0": 1 / 3 + 1 / 2, "3": 1, "1": 1 / 2}
    own = {"2": 1 / 3 + 1 / 3, "0": 1 / 3 + 1 / 2, "3": 1, "1": 1 / 2}
    chance = sum(others[code] * own[code] for code in own) / 9
    assert found["kappa"] == pytest.approx((found["accuracy"] - chance) / (1 - chance))
    assert rater_ceiling([["1"], None]) is None


def test_auc_is_of_relevant_against_not() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.6, 0.4], [0.2, 0.8]])
    # One of the four (relevant, not) pairs is in the wrong order.
    assert relevance_auc([YES, YES, NO, NO], probabilities, BINARY) == pytest.approx(0.75)
    assert relevance_auc([YES, YES], probabilities[:2], BINARY) is None


def test_ndcg_by_hand_over_queries_that_can_be_ranked() -> None:
    high, low = BINARY.gains
    gold = [NO, YES, YES, YES, NO]
    queries = ["q", "q", "r", "r", "s"]  # r's products are alike, s has one
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.6, 0.4], [0.5, 0.5]])
    value, count = ndcg_at(gold, probabilities, queries, BINARY)
    worst, best = low + high / math.log2(3), high + low / math.log2(3)
    assert count == 1 and value == pytest.approx(worst / best)


def test_calibration_error_by_hand() -> None:
    # Confidence 0.8, half of them right: |0.5 - 0.8|.
    probabilities = np.tile([0.8, 0.2], (4, 1))
    assert calibration_error([YES, YES, NO, NO], [YES] * 4, probabilities, BINARY) == pytest.approx(0.3)
    # A vote for the less probable label is as sure as that label is.
    assert calibration_error([YES, YES, NO, NO], [NO] * 4, probabilities, BINARY) == pytest.approx(0.3)
    assert calibration_error([NO] * 4, [NO] * 4, probabilities, BINARY) == pytest.approx(0.8)


def test_a_vote_may_differ_from_the_most_probable_label() -> None:
    figures = evaluate([NO], np.array([[0.6, 0.4]]), ["q"], BINARY, predicted=[NO])
    assert figures["accuracy"] == 1


@pytest.mark.parametrize("gold", [[], ["E"]])
def test_what_is_undefined_is_none_and_all_is_json(gold: list[str]) -> None:
    figures = evaluate(gold, certain(gold), ["q"] * len(gold), ESCI)
    json.dumps(figures, allow_nan=False)
    assert figures["auc"] is None and figures["ndcg_at_10"] is None and figures["ndcg_queries"] == 0
    assert (figures["accuracy"] is None) == (not gold)


def test_majority_is_learnt_from_train() -> None:
    assert majority_baseline(["S", "E", "E"], ["E", "S", "S", "S"]) == {
        "label": "E",
        "accuracy": 0.25,
        "macro_f1": pytest.approx(0.2),
    }
    assert majority_baseline([], ["E"])["accuracy"] is None


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_bootstrap_difference_is_that_of_the_metric(metric: str) -> None:
    draw = np.random.default_rng(0)
    gold, first, second = (list(draw.choice(list("ESCI"), 60)) for _ in range(3))
    queries = [str(i // 4) for i in range(60)]
    found = paired_bootstrap(gold, first, second, queries, ESCI, metric=metric, samples=500)  # type: ignore[arg-type]
    expected = label_metrics(gold, second)[metric] - label_metrics(gold, first)[metric]  # type: ignore[operator]
    assert found["difference"] == pytest.approx(expected)
    assert found["low"] < found["difference"] < found["high"] and found["queries"] == 15


def test_bootstrap_of_a_judge_with_itself_is_nothing() -> None:
    found = paired_bootstrap(["E", "S"], ["E", "E"], ["E", "E"], ["q", "r"], ESCI, samples=50)
    assert (found["difference"], found["low"], found["high"]) == (0, 0, 0)


def test_bootstrap_draws_queries_not_pairs() -> None:
    # Within a query all pairs go the same way. Drawn by pair, the interval would be about sqrt(25) narrower.
    gold, first = ["E"] * 200, ["S"] * 200
    second = ["E"] * 100 + ["S"] * 100
    by_query = paired_bootstrap(gold, first, second, [str(i // 25) for i in range(200)], ESCI)
    by_pair = paired_bootstrap(gold, first, second, [str(i) for i in range(200)], ESCI)
    assert by_query["high"] - by_query["low"] > 3 * (by_pair["high"] - by_pair["low"])


def test_bootstrap_covers_a_known_difference_about_as_often_as_it_says() -> None:
    draw, hits = np.random.default_rng(1), 0
    for _ in range(100):
        right = draw.random(80) < 0.6
        second = ["E" if r else "S" for r in right]
        found = paired_bootstrap(["E"] * 80, ["S"] * 80, second, [str(i) for i in range(80)], ESCI, samples=300)
        hits += found["low"] <= 0.6 <= found["high"]
    assert 88 <= hits <= 100


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_bootstrap_of_one_judge_is_that_beside_a_judge_who_is_always_wrong(metric: str) -> None:
    draw = np.random.default_rng(2)
    gold, said = (list(draw.choice(list("ESC"), 60)) for _ in range(2))
    queries = [str(i // 4) for i in range(60)]
    alone = bootstrap(gold, said, queries, ESCI, metric, 300)  # type: ignore[arg-type]
    beside = paired_bootstrap(gold, ["I"] * 60, said, queries, ESCI, metric, 300)  # type: ignore[arg-type]
    assert alone["value"] == pytest.approx(label_metrics(gold, said)[metric])
    assert [alone[end] for end in ("value", "low", "high")] == [beside[end] for end in ("difference", "low", "high")]
    assert bootstrap([], [], [], ESCI)["low"] is None
