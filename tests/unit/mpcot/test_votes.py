"""The majority's verdict, its ties, and how much of an unlabelled pair's answers agree with it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcot.asking.join_answers import AnsweredPairs
from mpcot.filters.chain import Chain
from mpcot.filters.config import VerdictFilter
from mpcot.rationales import sort_out
from mpcot.records import ANSWER
from mpcot.schemes.scheme import load_scheme
from mpcot.votes import Wanted, distribution, majority, wanted_verdicts

ESCI = load_scheme("esci")
PAIRS = pa.table(
    {"pair_id": ["g", "u", "n"], "label": ["E", None, None], "split": ["train", "unlabelled", "unlabelled"]}
).append_column("text", pa.array(["", "", ""]))


def answers(**said: str) -> AnsweredPairs:
    """Answers by pair: a letter is a verdict, a dot a failed answer. `g` has a gold label."""
    rows: list[dict[str, Any]] = [
        {"key": f"{pair}{n}", "pair_id": pair, "perspective": "rules", "sample": n, "rationale": "It is a drill."}
        | {"verdict": None if verdict == "." else verdict, "reason": "empty" if verdict == "." else None}
        for pair, verdicts in said.items()
        for n, verdict in enumerate(verdicts)
    ]
    return AnsweredPairs(pa.Table.from_pylist(rows, ANSWER), PAIRS, [])


def test_a_gold_label_is_wanted_whatever_was_said() -> None:
    assert wanted_verdicts(answers(g="SSS"), ESCI)["g"] == Wanted("E", 1.0, True)


def test_without_one_the_majority_is_wanted_and_failed_answers_agree_with_nobody() -> None:
    found = wanted_verdicts(answers(g="S", u="SSE.", n=".."), ESCI)
    assert found["u"] == Wanted("S", 0.5, False)
    assert found["n"] == Wanted(None, None, False)


def test_outcomes_of_an_unlabelled_pair_are_the_majoritys_with_its_agreement_as_weight() -> None:
    parts = sort_out(answers(g="EC", u="SSEI.", n=".."), Chain((VerdictFilter(),), ESCI))
    kept = [(row["pair_id"], row["verdict"], row["weight"]) for row in parts["kept"].to_pylist()]
    assert kept == [("g", "E", 1.0)] + [("u", "S", pytest.approx(0.4))] * 2
    reasons = Counter(parts["filtered"]["reason"].to_pylist())
    assert reasons == {"verdict is not gold": 1, "verdict is not the majority's": 2}
    assert [row["weight"] for row in parts["failed"].to_pylist()] == [pytest.approx(0.4), None, None]


def test_a_tie_goes_to_the_label_that_all_answers_find_likelier() -> None:
    logprobs = {"E": [0.5, 0.3, 0.1, 0.1], "S": [0.3, 0.6, 0.05, 0.05]}
    soft = {code: distribution([math.log(p) for p in shares], code, ESCI) for code, shares in logprobs.items()}
    for order in ("ES", "SE"):
        assert majority(order, [soft[code] for code in order], ESCI) == ("S", 1)


@given(st.lists(st.sampled_from(ESCI.codes), min_size=1, max_size=9))
def test_no_verdict_has_more_votes_than_the_majoritys(verdicts: list[str]) -> None:
    vote, votes = majority(verdicts, [distribution(None, verdict, ESCI) for verdict in verdicts], ESCI)
    counts = Counter(verdicts)
    assert votes == counts[vote] == max(counts.values())
