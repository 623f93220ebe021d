"""Conflicts become preferences: one right and one wrong answer of the same pair, bounded and balanced."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mpcot.schemes.scheme import load_scheme
from teacher.config import PreferenceSettings
from teacher.preferences.conflicts import Candidate, Preference, all_conflicts, gold_probability, limited, margin

ESCI = load_scheme("esci")
PERSPECTIVES = ("intent", "attributes", "rules")


def said(pair: str, perspective: str, verdict: str, sample: int = 0, sure: float | None = None) -> Candidate:
    return Candidate(pair, perspective, sample, f"{pair} {perspective} {sample} {verdict}", verdict, sure)


def mixed(pairs: int, samples: int = 4) -> tuple[list[Candidate], dict[str, str | None]]:
    """Every pair has right and wrong answers from each perspective."""
    gold = {f"p{n:03}": ESCI.codes[n % 4] for n in range(pairs)}
    answers = [
        said(pair, perspective, label if (i + sample) % 2 else "ESCI"[("ESCI".index(label) + 1) % 4], sample)
        for pair, label in gold.items()
        for i, perspective in enumerate(PERSPECTIVES)
        for sample in range(samples)
    ]
    return answers, dict(gold)


def conflicts(
    answers: list[Candidate],
    fallback: list[Candidate],
    gold: dict[str, str | None],
    settings: PreferenceSettings,
    seed: int,
) -> list[Preference]:
    """What stage 5 keeps of all pairs."""
    return limited(all_conflicts(answers, fallback, gold, settings, seed), gold, settings, seed)


def made(answers: list[Candidate], gold: dict[str, str | None], seed: int = 1, **changes: object) -> list[Preference]:
    fallback = changes.pop("fallback", [])
    return conflicts(answers, fallback, gold, PreferenceSettings(**changes), seed)


def test_never_two_right_or_two_wrong_and_never_of_two_pairs() -> None:
    answers, gold = mixed(40)
    found = made(answers, gold, per_pair=6)
    assert len(found) == 40 * 6
    for preference in found:
        label = gold[preference.chosen.pair_id]
        assert preference.chosen.pair_id == preference.rejected.pair_id
        assert preference.chosen.verdict == label != preference.rejected.verdict


def test_no_preference_twice_and_the_same_from_the_same_seed_in_any_order() -> None:
    answers, gold = mixed(20)
    found = made(answers, gold, per_pair=8)
    assert len({p.id for p in found}) == len(found) == 160
    assert made(answers, gold, per_pair=8) == found
    assert [p.chosen.pair_id for p in found] == sorted(p.chosen.pair_id for p in found)
    assert {p.id for p in made(answers, gold, seed=2, per_pair=8)} != {p.id for p in found}


def test_at_most_so_many_of_a_pair_and_in_all() -> None:
    answers, gold = mixed(20)
    counts = Counter(p.chosen.pair_id for p in made(answers, gold, per_pair=3))
    assert set(counts.values()) == {3}
    few = made(answers, gold, per_pair=3, max_rows=7)
    assert len(few) == 7 and [p.chosen.pair_id for p in few] == sorted(p.chosen.pair_id for p in few)
    assert len({p.chosen.pair_id for p in few}) > 3


def test_choices_are_spread_over_perspectives_and_answers() -> None:
    answers, gold = mixed(20)
    found = made(answers, gold, per_pair=3)
    for pair in gold:
        mine = [p for p in found if p.chosen.pair_id == pair]
        assert {p.chosen.perspective for p in mine} == set(PERSPECTIVES)
        assert len({p.rejected for p in mine}) == 3


def test_perspectives_cross_unless_told_not_to() -> None:
    answers, gold = mixed(30)
    crossed = [p for p in made(answers, gold) if p.chosen.perspective != p.rejected.perspective]
    assert crossed
    own = made(answers, gold, cross_perspective=False)
    assert own and all(p.chosen.perspective == p.rejected.perspective for p in own)
    only_crossed = [said("p", "intent", "E"), said("p", "rules", "C")]
    assert len(made(only_crossed, {"p": "E"})) == 1
    assert made(only_crossed, {"p": "E"}, cross_perspective=False) == []


@pytest.mark.parametrize("verdicts", ["EEE", "CSI"])
def test_no_conflict_no_preference(verdicts: str) -> None:
    answers = [said("p", perspective, v) for perspective, v in zip(PERSPECTIVES, verdicts, strict=True)]
    assert made(answers, {"p": "E"}) == []


def test_an_answer_right_elsewhere_stands_in_where_every_sample_is_wrong() -> None:
    wrong = [said("p", "rules", "C"), said("p", "intent", "S")]
    spare = [said("p", "attributes", "E", -1), said("p", "attributes", "I", -1), said("other", "rules", "E", -1)]
    found = made(wrong, {"p": "E"}, fallback=spare)
    assert {p.chosen for p in found} == {spare[0]} and {p.rejected for p in found} == set(wrong)
    with_own = made([*wrong, said("p", "rules", "E", 1)], {"p": "E"}, fallback=spare)
    assert spare[0] not in {p.chosen for p in with_own}


def test_a_wrong_answer_is_never_taken_from_elsewhere() -> None:
    assert made([said("p", "rules", "E")], {"p": "E"}, fallback=[said("p", "intent", "C", -1)]) == []


def test_pairs_without_a_gold_label_have_no_right_answer() -> None:
    assert made([said("p", "rules", "E"), said("p", "intent", "C")], {"p": None}) == []


@pytest.mark.parametrize(
    ("bounds", "count"),
    [
        ({}, 1),
        ({"min_margin": 0.29}, 1),
        ({"min_margin": 0.31}, 0),
        ({"max_margin": 0.31}, 1),
        ({"max_margin": 0.29}, 0),
        ({"margin_by": "log_probability", "min_margin": 0.69}, 1),  # ln 0.6 - ln 0.3 = ln 2 = 0.693
        ({"margin_by": "log_probability", "min_margin": 0.70}, 0),
        ({"margin_by": "log_probability", "max_margin": 0.69}, 0),
    ],
)
def test_the_margin_is_a_gap_of_the_gold_labels_probability(bounds: dict[str, Any], count: int) -> None:
    right, wrong = said("p", "intent", "E", sure=0.6), said("p", "rules", "C", sure=0.3)
    assert len(made([right, wrong], {"p": "E"}, **bounds)) == count


def test_a_surer_wrong_answer_has_no_margin_and_a_ruled_out_label_a_finite_one() -> None:
    right, wrong = said("p", "intent", "E", sure=0.3), said("p", "rules", "C", sure=0.4)
    assert made([right, wrong], {"p": "E"}) == []
    out = said("p", "rules", "C", sure=0.0)
    assert len(made([right, out], {"p": "E"}, margin_by="log_probability", max_margin=30)) == 1


def test_unknown_margins_are_kept_unless_told_not_to() -> None:
    answers = [said("p", "intent", "E"), said("p", "rules", "C", sure=0.3)]
    assert len(made(answers, {"p": "E"}, min_margin=1.0)) == 1
    assert made(answers, {"p": "E"}, unknown_margin="drop") == []


@pytest.mark.parametrize(("pick", "first"), [("widest", 0.1), ("narrowest", 0.5)])
def test_margins_are_picked_among_what_is_spread_alike(pick: str, first: float) -> None:
    right = said("p", "intent", "E", sure=0.9)
    wrong = [said("p", "rules", "C", n, sure) for n, sure in enumerate((0.3, 0.1, 0.5, None))]
    found = made([right, *wrong], {"p": "E"}, pick=pick, per_pair=4)
    assert len(found) == 4
    (best,) = made([right, *wrong], {"p": "E"}, pick=pick, per_pair=1)
    assert best.rejected.gold_probability == first
    known = made([right, wrong[3], wrong[0]], {"p": "E"}, pick=pick, per_pair=1)
    assert known[0].rejected == wrong[0], "an unknown margin comes last"


def test_margins_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"max_margin 0\.1 is below min_margin 0\.2"):
        PreferenceSettings(min_margin=0.2, max_margin=0.1)
    with pytest.raises(ValidationError, match="differ by 1 at most"):
        PreferenceSettings(min_margin=1.5)
    assert PreferenceSettings(min_margin=1.5, margin_by="log_probability").min_margin == 1.5


def test_perspectives_are_balanced_on_both_sides() -> None:
    gold: dict[str, str | None] = {f"p{n:02}": "E" for n in range(40)}
    views = {pair: ("intent", "rules") if n % 10 else ("rules", "intent") for n, pair in enumerate(gold)}
    answers = [said(pair, view, v) for pair, own in views.items() for view, v in zip(own, "EC", strict=True)]
    assert Counter(p.chosen.perspective for p in made(answers, gold)) == {"intent": 36, "rules": 4}
    even = made(answers, gold, perspective_ratio=2)
    for side in ("chosen", "rejected"):
        assert sorted(Counter(getattr(p, side).perspective for p in even).values()) == [4, 8]


def test_a_cut_leaves_no_label_beyond_its_ratio() -> None:
    gold: dict[str, str | None] = {f"{label}{n}": label for label in "ES" for n in range(20)}
    answers = [said(pair, view, v) for pair, label in gold.items() for view, v in (("intent", label), ("rules", "C"))]
    found = made(answers, gold, label_ratio=1, max_rows=9)
    counts = Counter(gold[p.chosen.pair_id] for p in found)
    assert counts["E"] == counts["S"] >= 2 and len(found) <= 9


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.sampled_from(["p0", "p1", "p2", "p3", "p4", "p5"]),
        st.sampled_from(PERSPECTIVES),
        st.integers(0, 4),
        st.sampled_from(["It fits.", "It is an accessory.", "Another brand."]),
        st.sampled_from(ESCI.codes),
        st.none() | st.floats(0, 1),
    ),
    max_size=60,
)
RATIOS = st.none() | st.floats(1, 4)


@settings(deadline=None)
@given(
    CANDIDATES,
    CANDIDATES,
    st.fixed_dictionaries(
        {"per_pair": st.integers(1, 6), "cross_perspective": st.booleans(), "min_margin": st.floats(0, 0.5)}
        | {
            "pick": st.sampled_from(["random", "widest", "narrowest"]),
            "label_ratio": RATIOS,
            "max_rows": st.none() | st.integers(1, 9),
        }
        | {"perspective_ratio": RATIOS, "unknown_margin": st.sampled_from(["keep", "drop"])}
        | {"margin_by": st.sampled_from(["probability", "log_probability"])}
    ),
)
def test_whatever_the_answers_and_the_settings(
    answers: list[Candidate], spare: list[Candidate], chosen: dict[str, Any]
) -> None:
    """Never two right or two wrong, never of two pairs; every bound and every ratio holds."""
    gold: dict[str, str | None] = {"p0": "E", "p1": "S", "p2": "C", "p3": "I", "p4": "E", "p5": None}
    own = PreferenceSettings(**chosen)
    found = conflicts(answers, spare, gold, own, seed=1)
    for p in found:
        assert p.chosen.pair_id == p.rejected.pair_id and p.rejected in answers
        assert p.chosen.verdict == gold[p.chosen.pair_id] != p.rejected.verdict
        assert own.cross_perspective or p.chosen.perspective == p.rejected.perspective
        gap = margin(p.chosen, p.rejected, own)
        assert gap >= own.min_margin if gap is not None else own.unknown_margin == "keep"
    assert max(Counter(p.chosen.pair_id for p in found).values(), default=0) <= own.per_pair
    assert own.max_rows is None or len(found) <= own.max_rows
    ratios = (own.label_ratio, own.perspective_ratio, own.perspective_ratio)
    traits = ([gold[p.chosen.pair_id] for p in found], *([c.perspective for c in side] for side in sides(found)))
    for ratio, trait in zip(ratios, traits, strict=True):
        counts = Counter(trait).values()
        assert not counts or ratio is None or max(counts) <= ratio * min(counts)
    assert conflicts(answers, spare, gold, own, seed=1) == found


def sides(found: list[Preference]) -> tuple[list[Candidate], list[Candidate]]:
    return [p.chosen for p in found], [p.rejected for p in found]


def test_frequent_labels_are_capped_by_the_rarest() -> None:
    gold: dict[str, str | None] = {f"e{n:02}": "E" for n in range(50)} | {"s0": "S", "s1": "S"}
    answers = [
        said(pair, p, v) for pair, label in gold.items() for p, v in (("intent", label), ("rules", "C")) if label
    ]
    plain = Counter(gold[p.chosen.pair_id] for p in made(answers, gold))
    even = Counter(gold[p.chosen.pair_id] for p in made(answers, gold, label_ratio=4))
    assert plain == {"E": 50, "S": 2} and even == {"E": 8, "S": 2}
    assert made([], {}, label_ratio=4, perspective_ratio=1) == []


def test_the_gold_labels_probability_is_normalised_over_the_labels() -> None:
    logprobs = [math.log(0.2), math.log(0.1), math.log(0.05), math.log(0.05)]
    assert gold_probability(logprobs, "E", ESCI) == pytest.approx(0.5)
    assert gold_probability([-1e4, -1e4, -1e4, 0.0], "E", ESCI) == 0.0
    assert gold_probability(None, "E", ESCI) is None
