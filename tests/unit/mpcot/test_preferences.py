"""Conflicts become preferences: one right and one wrong answer of the same pair, bounded and balanced."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from mpcot.config import PreferenceSettings
from mpcot.labels import load_scheme
from mpcot.preferences import Candidate, Preference, conflicts, gold_probability

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


def test_the_least_margin_of_verdict_probability() -> None:
    right, wrong = said("p", "intent", "E", sure=0.6), said("p", "rules", "C", sure=0.3)
    for least, count in ((0.0, 1), (0.29, 1), (0.31, 0)):
        assert len(made([right, wrong], {"p": "E"}, min_margin=least)) == count
    unknown = [said("p", "intent", "E"), said("p", "rules", "C")]
    assert len(made(unknown, {"p": "E"}, min_margin=1.0)) == 1


def test_balance_caps_frequent_labels_at_four_times_the_rarest() -> None:
    gold: dict[str, str | None] = {f"e{n:02}": "E" for n in range(50)} | {"s0": "S", "s1": "S"}
    answers = [
        said(pair, p, v) for pair, label in gold.items() for p, v in (("intent", label), ("rules", "C")) if label
    ]
    plain = Counter(gold[p.chosen.pair_id] for p in made(answers, gold))
    even = Counter(gold[p.chosen.pair_id] for p in made(answers, gold, balance_labels=True))
    assert plain == {"E": 50, "S": 2} and even == {"E": 8, "S": 2}
    assert made([], {}, balance_labels=True) == []


def test_the_gold_labels_probability_is_normalised_over_the_labels() -> None:
    logprobs = [math.log(0.2), math.log(0.1), math.log(0.05), math.log(0.05)]
    assert gold_probability(logprobs, "E", ESCI) == pytest.approx(0.5)
    assert gold_probability([-1e4, -1e4, -1e4, 0.0], "E", ESCI) == 0.0
    assert gold_probability(None, "E", ESCI) is None
