"""The teacher's judgement of a pair: vote, ties, soft labels, missing perspectives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distill.metrics import label_metrics
from mpcot.judgements import Quality, judge
from mpcot.records import JUDGEMENT
from mpcot.schemes.scheme import load_scheme
from mpcot.vote_fit import VoteFit
from mpcot.votes import distribution

ESCI = load_scheme("esci")
NAMES = ("intent", "attributes", "rules")


def said(perspective: str, verdict: str | None, shares: list[float] | None = None, **more: Any) -> dict[str, Any]:
    logprobs = [math.log(s) for s in shares] if shares else None
    row = {"perspective": perspective, "verdict": verdict, "rationale": f"{perspective} said", "logprobs": logprobs}
    return row | {"reason": None} | more


def test_the_majority_wins_even_against_surer_minorities() -> None:
    sure = [0.001, 0.997, 0.001, 0.001]
    unsure = [0.3, 0.29, 0.21, 0.2]
    found = judge([said("intent", "E", unsure), said("attributes", "S", sure), said("rules", "E", unsure)], NAMES, ESCI)
    assert found is not None
    assert found["vote"] == "E" and found["agreement"] == pytest.approx(2 / 3)
    assert found["verdicts"] == ["E", "S", "E"]
    assert found["soft"] == pytest.approx([0.601 / 3, 1.577 / 3, 0.421 / 3, 0.401 / 3])


def test_a_tie_goes_to_the_higher_mean_log_probability() -> None:
    """Means of logs: E (ln 0.5 + ln 0.3) / 2 < S (ln 0.3 + ln 0.6) / 2; the mean of E alone would differ from C's."""
    answers = [said("intent", "E", [0.5, 0.3, 0.1, 0.1]), said("rules", "S", [0.3, 0.6, 0.05, 0.05])]
    for order in (answers, answers[::-1]):
        found = judge(order, NAMES, ESCI)
        assert found is not None and found["vote"] == "S" and found["agreement"] == pytest.approx(1 / 3)


def test_the_mean_is_of_logs_so_one_certain_no_weighs_heavily() -> None:
    """Arithmetic means prefer E (0.5 against 0.4); in logs E is ruled out by the second answer."""
    answers = [said("intent", "E", [0.998, 0.001, 0.0005, 0.0005]), said("rules", "S", [0.002, 0.799, 0.1, 0.099])]
    found = judge(answers, NAMES, ESCI)
    assert found is not None and found["soft"][0] > found["soft"][1]
    expected = {c: math.log(a) + math.log(b) for c, a, b in (("E", 0.998, 0.002), ("S", 0.001, 0.799))}
    assert found["vote"] == max(expected, key=lambda c: expected[c])


def test_the_samples_of_a_perspective_count_as_one_voice() -> None:
    sure = {"E": [0.9, 0.1, 0, 0], "S": [0.1, 0.9, 0, 0]}
    answers = [said("intent", v, [max(s, 1e-9) for s in sure[v]], sample=n) for n, v in enumerate("SEE")]
    answers += [said("rules", "S", [0.3, 0.5, 0.1, 0.1], sample=n) for n in range(3)]
    answers[0]["rationale"] = "the first, of another mind"
    found = judge(answers, ("intent", "rules"), ESCI)
    assert found is not None
    assert found["verdicts"] == ["E", "S"] and found["rationales"][0] == "intent said"
    assert found["perspective_soft"][0][:2] == pytest.approx([1.9 / 3, 1.1 / 3], abs=1e-6)
    assert found["agreement"] == pytest.approx(1 / 2)


def test_without_log_probabilities_the_shares_of_the_samples_stand_for_them() -> None:
    """One verdict alone is 0.9 sure; with C labels that adds a = 0.1 / (0.9 C - 1) to each count, here 1 / 26."""
    a = 1 / 26
    for verdicts, sure in (("E", 0.9), ("EE", (2 + a) / (2 + 4 * a)), ("EES", (2 + a) / (3 + 4 * a))):
        found = judge([said("intent", v, sample=n) for n, v in enumerate(verdicts)], ("intent",), ESCI)
        assert found is not None and found["vote"] == "E"
        assert found["soft"][0] == pytest.approx(sure) and sum(found["soft"]) == pytest.approx(1)
    assert found["soft"][1] == pytest.approx((1 + a) / (3 + 4 * a)) and found["soft"][2] == pytest.approx(
        a / (3 + 4 * a)
    )


def test_samples_with_and_without_log_probabilities_count_alike() -> None:
    answers = [said("intent", "E", [0.6, 0.2, 0.1, 0.1]), said("intent", "S", sample=1)]
    found = judge(answers, ("intent",), ESCI)
    assert found is not None and found["soft"] == pytest.approx(
        [(0.6 + 0.1 / 3) / 2, (0.2 + 0.9) / 2, 0.2 / 3, 0.2 / 3]
    )


def test_who_said_what_is_marked() -> None:
    answers = [said("intent", "E"), said("rules", "S", origin="people")]
    found = judge(answers, NAMES, ESCI)
    assert found is not None and found["origin"] == ["teacher", None, "people"]


def test_a_perspective_that_failed_holds_nulls_and_does_not_vote() -> None:
    answers = [said("rules", "C", [0.1, 0.1, 0.7, 0.1]), said("intent", "E", reason="too long")]
    found = judge(answers, NAMES, ESCI)
    assert found is not None
    assert found["verdicts"] == [None, None, "C"] and found["rationales"] == [None, None, "rules said"]
    assert found["perspective_soft"][:2] == [None, None]
    assert found["perspective_soft"][2] == pytest.approx([0.1, 0.1, 0.7, 0.1])
    assert found["vote"] == "C" and found["agreement"] == pytest.approx(1 / 3)
    pa.Table.from_pylist([{"pair_id": "p", **found}], JUDGEMENT)


def test_no_answer_no_judgement() -> None:
    assert judge([said("rules", None, reason="empty")], NAMES, ESCI) is None
    assert judge([], NAMES, ESCI) is None


def test_soft_labels_are_a_distribution_even_from_ruled_out_labels() -> None:
    shares = distribution([-0.1, -1e4, -1e4, -3.0], "E", ESCI)
    assert shares.sum() == pytest.approx(1) and shares[1] == 0 and shares[0] > 0.9


def test_without_log_probabilities_the_verdict_is_near_certain() -> None:
    shares = distribution(None, "C", ESCI)
    assert shares.sum() == pytest.approx(1) and shares.argmax() == 2 and shares.max() == pytest.approx(0.9)
    binary = distribution(None, "0", load_scheme("binary"))
    assert binary.tolist() == pytest.approx([0.1, 0.9])


def test_quality_per_split_perspective_and_vote() -> None:
    labelled = [("E", "test"), ("E", "test"), ("S", "test"), ("I", "test"), (None, "unlabelled")]
    truth = {f"p{n}": {"label": label, "split": split} for n, (label, split) in enumerate(labelled)}
    votes = ["E", "S", "S", "E", "E"]
    judged = [{"pair_id": f"p{n}", "vote": vote, "verdicts": [vote, None]} for n, vote in enumerate(votes)]
    quality = Quality(("intent", "rules"))
    quality.add(judged[:2], truth)
    quality.add(judged[2:], truth)
    found = quality.figures()
    assert set(found) == {"test"} and set(found["test"]) == {"intent", "rules", "vote"}
    assert found["test"]["vote"]["accuracy"] == 0.5 and found["test"]["vote"]["pairs"] == 4
    # F1: E 2*1/(2+2) = 0.5, S 2*1/(2+1) = 2/3, I 0.
    assert found["test"]["vote"]["macro_f1"] == pytest.approx((0.5 + 2 / 3) / 3)
    assert found["test"]["rules"]["accuracy"] == 0.0


def test_a_label_that_is_only_said_has_no_f1_of_its_own() -> None:
    """As for the students, with which it is compared."""
    gold, said = ["E", "E", "S", "S"], ["E", "E", "S", "C"]
    truth = {f"p{n}": {"label": label, "split": "test"} for n, label in enumerate(gold)}
    quality = Quality(("intent",))
    quality.add([{"pair_id": f"p{n}", "vote": v, "verdicts": [v]} for n, v in enumerate(said)], truth)
    expected = label_metrics(gold, said)["macro_f1"]
    assert quality.figures()["test"]["vote"]["macro_f1"] == pytest.approx(expected) == pytest.approx((1 + 2 / 3) / 2)


def test_a_pair_judged_as_a_whole_has_a_vote_and_no_verdicts() -> None:
    logs = np.log([0.1, 0.7, 0.1, 0.1]).tolist()
    row = said("", "S") | {"perspective": None, "logprobs": logs, "origin": "people"}
    found = judge([row], NAMES, ESCI)
    assert found is not None
    assert found["soft"] == pytest.approx([0.1, 0.7, 0.1, 0.1])
    silent = [None] * len(NAMES)
    assert {name: found[name] for name in ("vote", "agreement", "verdicts", "rationales", "perspective_soft")} == {
        "vote": "S", "agreement": 1, "verdicts": silent, "rationales": silent, "perspective_soft": silent,
    }  # fmt: skip
    assert found["origin"] == ["people"] * len(NAMES)
    quality = Quality(NAMES)
    quality.add([found | {"pair_id": "p"}], {"p": {"label": "E", "split": "dev"}})
    assert quality.figures() == {"dev": {"vote": {"accuracy": 0, "macro_f1": 0, "pairs": 1}}}
    fit = VoteFit((2.0,) * len(NAMES), (1 / len(NAMES),) * len(NAMES))
    assert fit.apply(found, ESCI) == found
