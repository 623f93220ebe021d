"""Filters as configured steps: what each objects to, and in which order."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.base.errors import UserError
from mpcot.asking.join_answers import AnsweredPairs
from mpcot.config import PerspectiveSettings, RationaleSettings, SampleSettings
from mpcot.filters.chain import Chain, WellFormed
from mpcot.filters.objections import PHRASE_LOOP, WORD_LOOP, loops
from mpcot.perspectives.perspective import load_perspectives
from mpcot.rationales import sort_out
from mpcot.records import ANSWER
from mpcot.votes import Wanted
from tests.helpers.filter_chain import DRILL, ESCI, GOLD, Step, chain, said


def reason(rationale: str, *filters: Step, verdict: str = "E", gold: str | None = "E") -> str | None:
    return chain(*filters).reason(said(rationale, verdict, gold))


@pytest.mark.parametrize(
    ("rationale", "verdict", "gold", "expected"),
    [
        ("The shopper wants a drill and this is one.", "E", "E", None),
        ("The shopper wants a drill and this is one.", "E", "S", "verdict is not gold"),
        ("The shopper wants a drill and this is one.", "E", None, None),
        ("This is a drill. " * 3, "E", "E", "repetition"),
        ("This is a drill. " * 3, "E", "I", "repetition"),
        ("a drill with a battery, a drill with a battery, a drill with a battery", "E", None, "repetition"),
        ("A drill is a drill and a red drill is a red one.", "E", "E", None),
        ("It is a drill drill Drill drill", "E", "E", "repetition"),
        ("It is a drill drill drill.", "E", "E", None),
        ("1. Type: Gold, Silver", "E", "E", "form: markup"),
        ("1. Type: Gold, Silver", "E", "S", "verdict is not gold"),
        ("A red drill.", "E", "E", "length: too few words"),
        ("It is a drill by Maple.", "E", "E", "not grounded: a brand"),
    ],
)
def test_by_default_loops_wrong_verdicts_stubs_and_inventions_go(
    rationale: str, verdict: str, gold: str, expected: str | None
) -> None:
    for defaults in (RationaleSettings(), SampleSettings()):
        assert Chain(defaults.filters, ESCI).reason(said(rationale, verdict, gold)) == expected


@pytest.mark.parametrize(
    ("step", "rationale", "expected"),
    [
        ("form", DRILL, None),
        ("form", 'It is called "red drill."', None),
        ("form", "The shopper wants a drill with a", "form: ends in mid-sentence"),
        ({"kind": "form", "whole_sentences": False}, "The shopper wants a drill with a", None),
        ("form", "It is a drill. Verdict: E It is red.", "form: a verdict within the rationale"),
        ("form", "<think> It is a drill.", "form: markup"),
        ("form", "- It is a **drill**.", "form: markup"),
        ("form", "Weight < 5 kg and > 2 kg, 3 - 4 sizes.", None),
        ("form", "1. Type: Gold, Silver", "form: markup"),
        ("form", "It agrees.\n2) It is red.", "form: markup"),
        ("form", "Size 42. It agrees.\nThe colour differs.", None),
        ("form", "Verdict: Suser", "form: a verdict within the rationale"),
        ("length", "It is a drill.", "length: too few words"),
        ("length", "It is a red drill.", None),
        ({"kind": "length", "max_words": 6}, "It is a red drill of six.", "length: too many words"),
        ({"kind": "length", "max_words": 6}, "It is a red drill, bought.", None),
        ("repetition", "The drill is red. The drill is new. The drill is big.", None),
        (
            {"kind": "repetition", "max_repeated_share": 0.5},
            "The drill is red. The drill is new. The drill is big.",
            "repetition",
        ),
        ({"kind": "repetition", "max_repeated_share": 0.8}, "The drill is red. The drill is new. It is big.", None),
        ("label_only", "This product is an exact match for the query.", "names the label only"),
        ("label_only", "It misses one point of what was asked for, so it is a Substitute.", "names the label only"),
        ("label_only", "This drill is an exact match for the query.", None),
        ({"kind": "label_only", "min_words": 2}, "This drill is an exact match.", "names the label only"),
        ("language", "Der Kunde sucht eine Bohrmaschine und das ist eine.", "another language"),
        ("language", DRILL, None),
        ({"kind": "language", "language": "de"}, "Der Kunde sucht eine Bohrmaschine und das ist eine.", None),
        ({"kind": "language", "language": "de"}, DRILL, "another language"),
        ("language", "Echo Screen Protector, compatible with Maple Orbit 5", None),
        ("language", "12345", None),
    ],
)
def test_what_each_step_objects_to(step: Step, rationale: str, expected: str | None) -> None:
    assert reason(rationale, step) == expected


def test_a_rationale_that_repeats_the_question_or_an_example_is_a_copy() -> None:
    steps = chain("form")
    rules = load_perspectives(PerspectiveSettings())[2]
    for copied in (rules.question.rpartition(".")[0] + ".", rules.short, rules.examples[2].rationale):
        assert steps.reason(said(copied)) == "form: a copy of the prompt"
    assert steps.reason(said(rules.short, view="intent")) is None
    assert steps.reason(said("An accessory is not the item, and this case for a drill only holds one.")) is None


def test_the_quick_look_for_loops_misses_none() -> None:
    draw = random.Random(4)
    words = ("drill", "Drill", "drills", "it's", "wonderful", "wonderfully", "red", "a", "18", "drill, red")
    found = []
    for _ in range(4000):
        phrase = " ".join(draw.choices(words, k=draw.randint(1, 3)))
        before, after = (" ".join(draw.choices(words, k=draw.randint(0, 3))) for _ in range(2))
        gap = draw.choice((" ", ", ", ". ", "-"))
        text = f"{before} {gap.join([phrase] * draw.randint(1, 4))}{draw.choice(('', 'ly', ' '))}{after}"
        found.append(bool(PHRASE_LOOP.search(text) or WORD_LOOP.search(text)))
        assert loops(text) == found[-1], text
    assert 400 < sum(found) < 3600


def test_the_first_step_that_objects_gives_the_reason_and_no_step_objects_to_nothing() -> None:
    assert chain("length", "verdict").reason(said("No drill.", "S")) == "length: too few words"
    assert chain("verdict", "length").reason(said("No drill.", "S")) == "verdict is not gold"
    assert chain().reason(said("No drill.", "S")) is None


def test_steps_are_written_as_names_or_with_settings_and_a_wrong_one_is_refused() -> None:
    found = RationaleSettings(filters=["verdict", {"kind": "length", "min_words": 9}]).filters
    assert [step.kind for step in found] == ["verdict", "length"] and found[1].min_words == 9
    assert RationaleSettings.model_validate(RationaleSettings(filters=found).model_dump(mode="json")).filters == found
    with pytest.raises(ValidationError, match="length is given twice"):
        RationaleSettings(filters=["length", "verdict", "length"])
    with pytest.raises(ValidationError, match="min_wrds"):
        RationaleSettings(filters=[{"kind": "length", "min_wrds": 9}])
    with pytest.raises(ValidationError, match="'lenth'"):
        RationaleSettings(filters=["lenth"])
    with pytest.raises(ValidationError, match=r"raise length\.max_words 8, it is below min_words 9"):
        RationaleSettings(filters=[{"kind": "length", "min_words": 9, "max_words": 8}])
    with pytest.raises(ValidationError, match="remembered has no effect"):
        RationaleSettings(filters=[{"kind": "near_duplicate", "remembered": 8}])
    with pytest.raises(UserError, match="does not know the language 'xq'"):
        chain({"kind": "language", "language": "xq"})


WORDS = st.lists(st.sampled_from(["red", "drill", "case", "fits", "misses", "volts"]), min_size=1, max_size=8)


def test_an_unlabelled_pair_keeps_the_verdict_of_most() -> None:
    minority = WellFormed("p", "rules", DRILL, "S", Wanted("E", 0.6, False))
    assert chain("verdict").reason(minority) == "verdict is not the majority's"
    assert chain("form").reason(minority) is None


def test_a_rationale_that_speaks_of_the_hint_is_no_rationale() -> None:
    filters = chain("verdict")
    for text in (
        "The hint says it is exact.",
        "I was told the verdict, as the right verdict is E.",
        "The given label fits.",
    ):
        assert filters.reason(WellFormed("p", "rules", text, "E", GOLD, hinted=True)) == "speaks of the hint"
        assert filters.reason(WellFormed("p", "rules", text, "E", GOLD)) is None
    assert filters.reason(WellFormed("p", "rules", DRILL, "E", GOLD, hinted=True)) is None
    assert filters.reason(WellFormed("p", "rules", DRILL, "S", GOLD, hinted=True)) == "verdict is not gold"


PAIRS = pa.table({"pair_id": ["p", "q"], "label": ["E", None], "split": ["train", "unlabelled"]})
PAIRS = PAIRS.append_column("text", pa.array(["Query: drill", "Query: case"]))
KINDS = ("verdict", "form", "length", "repetition", "grounded", "label_only", "near_duplicate")
ROWS = st.lists(
    st.tuples(
        st.sampled_from("pq"), st.sampled_from("ESCI"), WORDS, st.sampled_from([None, "empty", "engine error: x"])
    ),
    max_size=20,
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(KINDS), unique=True), ROWS)
def test_every_row_goes_to_one_outcome_with_its_reason(kinds: list[str], rows: list[Any]) -> None:
    table = pa.Table.from_pylist(
        [
            {"key": str(n), "pair_id": pair, "perspective": "rules", "sample": n, "verdict": verdict, "reason": why}
            | {"rationale": " ".join(words)}
            for n, (pair, verdict, words, why) in enumerate(sorted(rows, key=lambda row: row[0]))
        ],
        ANSWER,
    )
    parts = sort_out(AnsweredPairs(table, PAIRS, []), chain(*kinds))
    assert sorted(key for part in parts.values() for key in part["key"].to_pylist()) == sorted(table["key"].to_pylist())
    assert parts["kept"]["reason"].null_count == len(parts["kept"])
    assert parts["filtered"]["reason"].null_count == parts["failed"]["reason"].null_count == 0
    assert set(parts["failed"]["reason"].to_pylist()) <= {"empty", "engine error: x"}
    everything = pa.concat_tables(parts.values()).to_pylist()
    assert {row["weight"] for row in everything if row["pair_id"] == "p"} <= {1.0}
    if "verdict" in kinds:
        kept = {pair: {r["verdict"] for r in parts["kept"].to_pylist() if r["pair_id"] == pair} for pair in "pq"}
        assert kept["p"] <= {"E"} and len(kept["q"]) <= 1
