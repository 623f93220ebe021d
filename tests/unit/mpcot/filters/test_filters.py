"""Filters as configured steps: what each objects to, in which order, and which near-duplicates go."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
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
from mpcot.filters.config import NearDuplicateFilter
from mpcot.filters.near_duplicates import REMEMBERED, KeptOfStage, jaccard, shingles
from mpcot.filters.objections import PHRASE_LOOP, WORD_LOOP, loops
from mpcot.perspectives.perspective import load_perspectives
from mpcot.rationales import sort_out
from mpcot.records import ANSWER
from mpcot.schemes.scheme import load_scheme
from mpcot.votes import Wanted

ESCI = load_scheme("esci")
DRILL = "The shopper wants a drill with a battery, and this drill has one of 18 volts."
Step = str | dict[str, Any]
GOLD = Wanted("E", 1.0, True)


def chain(*filters: Step) -> Chain:
    return Chain(RationaleSettings(filters=filters).filters, ESCI, load_perspectives(PerspectiveSettings()))


def said(
    rationale: str, verdict: str = "E", gold: str | None = "E", pair: str = "p", view: str = "rules"
) -> WellFormed:
    """An answer; without a gold label the majority is of its verdict."""
    wanted = Wanted(gold, 1.0, True) if gold else Wanted(verdict, 0.5, False)
    return WellFormed(pair, view, rationale, verdict, wanted)


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


TEXT = "Query: macbook case 13 inch\nProduct: Orchard Slim Case for A2337 Laptop, 13.3 in, Pack of two, 1,200 g"


@pytest.mark.parametrize(
    ("rationale", "expected"),
    [
        ("The case is for a 13 inch laptop, 13.3 in, as 13-inch, and weighs 1.2 kg or 1200 g.", None),
        ("Orchard's slim case fits the A2337, in a pack of 2, known since 2020.", None),
        ("It has a price tag of $289.", "not grounded: a number"),
        ("It is 14 inches wide.", "not grounded: a number"),
        ("It fits the A2442.", "not grounded: a model name"),
        ("The case is made by the company Apple.", "not grounded: a brand"),
        ('Made by the company Orchard. Cases like this differ. "Slim" is its name, for USB, in English.', None),
        ("A case for an Orcherd laptop: misspelt, but the same.", None),
    ],
)
def test_what_is_in_neither_query_nor_product_is_not_grounded(rationale: str, expected: str | None) -> None:
    answer = WellFormed("p", "rules", rationale, "E", GOLD, text=TEXT)
    assert chain("grounded").reason(answer) == expected


def test_words_of_ones_own_and_languages_with_capital_nouns(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("Apple\nA2442\n")
    own = chain({"kind": "grounded", "words_file": str(words)})
    for text in ("Made by the company Apple for the A2442.", "The case is of Apple."):
        assert own.reason(WellFormed("p", "rules", text, "E", GOLD, text=TEXT)) is None
    german = WellFormed("p", "rules", "Das ist eine Tasche aus dem besten Leder.", "E", GOLD, text=TEXT)
    assert chain("grounded").reason(german) == "not grounded: a brand"
    assert chain({"kind": "grounded", "brands": False}).reason(german) is None
    with pytest.raises(UserError, match=r"grounded\.words_file .*none\.txt cannot be read"):
        chain({"kind": "grounded", "words_file": str(tmp_path / "none.txt")})


def test_few_rationales_of_a_strong_teacher_are_not_grounded() -> None:
    """Of these, most name what the world knows of a film or a brand, and no product's text has."""
    folder = Path(__file__).parents[5] / "shared" / "data" / "esci"
    if not folder.is_dir():
        pytest.skip("the shared data is not beside the repository")
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").open(encoding="utf-8")]
    known = {(row["query"], row["product_id"]): " ".join(str(value) for value in row.values() if value) for row in rows}
    steps, look = chain("form", "length"), chain("grounded")
    failed = Counter[str]()
    rationales = [json.loads(line) for line in (folder / "rationales.jsonl").open(encoding="utf-8")]
    for row in rationales:
        text = known[row["query"], row["product_id"]]
        answer = WellFormed("p", row["perspective"], row["rationale"], row["verdict"], GOLD, text=text)
        failed["form or length"] += steps.reason(answer) is not None
        failed["grounded"] += look.reason(answer) is not None
    assert failed["form or length"] < 0.01 * len(rationales) and failed["grounded"] < 0.04 * len(rationales)


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


NEAR = DRILL.replace("18", "20")  # 12 of the 14 runs of three words are the same: 12 / 16


def test_samples_of_one_pair_that_say_nearly_the_same_are_kept_once() -> None:
    filters = chain("verdict", {"kind": "near_duplicate", "similarity": 0.7})
    assert jaccard(shingles(DRILL), shingles(NEAR)) == pytest.approx(12 / 16)
    assert filters.reason(said(DRILL)) is None
    assert filters.reason(said(NEAR)) == "near-duplicate"
    assert filters.reason(said(NEAR, view="intent")) is None, "another perspective"
    assert filters.reason(said("Red drills are drills, says the rule.")) is None
    assert filters.reason(said(DRILL, pair="q")) is None, "another pair"


def test_what_was_not_kept_makes_no_duplicates() -> None:
    filters = chain("near_duplicate", "verdict")
    assert filters.reason(said(DRILL, "S")) == "verdict is not gold"
    assert filters.reason(said(DRILL)) is None
    assert filters.reason(said(DRILL)) == "near-duplicate"


def test_less_alike_than_the_similarity_is_kept() -> None:
    filters = chain({"kind": "near_duplicate", "similarity": 0.8})
    assert [filters.reason(said(text)) for text in (DRILL, NEAR, DRILL)] == [None, None, "near-duplicate"]


def test_over_a_stage_templates_go_and_only_so_many_are_remembered() -> None:
    step = {"kind": "near_duplicate", "within": "stage", "remembered": 2, "similarity": 1.0}
    filters = chain(step)
    texts = ["It is a red drill.", "It is a blue drill.", "It is a green drill."]
    assert [filters.reason(said(t, pair=f"p{n}")) for n, t in enumerate(texts)] == [None, None, None]
    assert filters.reason(said(texts[2], pair="x")) == "near-duplicate"
    assert filters.reason(said(texts[2], pair="x", view="intent")) is None
    assert filters.reason(said(texts[0], pair="x")) is None, "forgotten"
    assert filters.reason(said(texts[1], pair="x")) is None, "forgotten since"


def test_the_memory_of_a_stage_is_bounded() -> None:
    kept = KeptOfStage(NearDuplicateFilter(within="stage", remembered=50))
    for n in range(300):
        kept.add((f"p{n}", "rules", "E"), shingles(f"Drill number {n} is {n * 7} times a drill of kind {n * 13}."))
    assert len(kept.said) == 50 == len(kept.index.keys)
    assert (
        max(kept.index.get_counts()[0].values()) <= 50
        and KeptOfStage(NearDuplicateFilter(within="stage")).most == REMEMBERED
    )


WORDS = st.lists(st.sampled_from(["red", "drill", "case", "fits", "misses", "volts"]), min_size=1, max_size=8)
TEXTS = st.lists(WORDS.map(" ".join), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.sampled_from([0.3, 0.6, 1.0]), st.sampled_from(["pair", "stage"]))
def test_only_an_answer_like_a_kept_one_goes(texts: list[str], least: float, within: str) -> None:
    """Within a pair none is missed either; over a stage the index may miss some."""
    filters = chain({"kind": "near_duplicate", "within": within, "similarity": least})
    kept: list[str] = []
    for text in texts:
        alike = any(jaccard(shingles(text), shingles(other)) >= least for other in kept)
        dropped = filters.reason(said(text)) is not None
        assert alike if dropped else not (alike and within == "pair")
        kept += [] if dropped else [text]


def test_over_a_stage_near_duplicates_are_found_among_many_others() -> None:
    filters = chain({"kind": "near_duplicate", "within": "stage"})
    base = [
        f"The query names brand {n} and size {n * 3}, the product has brand {n} in colour {n * 5}" for n in range(300)
    ]
    assert all(filters.reason(said(text, pair=str(n))) is None for n, text in enumerate(base))
    found = [filters.reason(said(text + " too.", pair=f"x{n}")) for n, text in enumerate(base)]
    assert found.count("near-duplicate") > 285  # each is 0.94 alike, above the 0.8 asked for


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
