from __future__ import annotations

from typing import Any

import pytest

from distill.config import TargetSettings
from distill.targets.encoder_texts import delexicalised, permuted, stated, target_texts
from mpcot.schemes.scheme import load_scheme

ESCI = load_scheme("esci")
PAIR = {"query": "red mug for tea", "title": "Acme blue mug, 2 pieces"}
SAID = {
    "pair_id": "p",
    "verdicts": ["E", None, "S"],
    "rationales": ["It is a mug.", " ", "Blue is not red."],
    "perspective_soft": [[0.82, 0.1, 0.05, 0.03], None, [0.2, 0.6, 0.1, 0.1]],
}


def texts(**changes: Any) -> dict[str, Any]:
    return target_texts(SAID, PAIR, TargetSettings(**changes), ESCI)


def test_the_rationale_as_it_is() -> None:
    assert texts(text="rationale") == {"pair_id": "p", "vectors": ["It is a mug.", None, "Blue is not red."]}


def test_the_verdict_with_its_confidence_comes_before_the_rationale() -> None:
    found = texts(text="rationale+verdict")["vectors"]
    assert found == [
        "label Exact, confidence 0.82. It is a mug.",
        None,
        "label Substitute, confidence 0.60. Blue is not red.",
    ]


def test_a_judgement_without_a_verdict_keeps_its_rationale() -> None:
    silent = SAID | {"verdicts": [None] * 3, "perspective_soft": [None] * 3}
    found = target_texts(silent, {}, TargetSettings(text="rationale+verdict", controls=("template",)), ESCI)
    assert found["vectors"][0] == "It is a mug." and found["template"] == [None] * 3


def test_words_of_query_and_title_have_placeholders() -> None:
    found = texts(text="delexicalised")["vectors"]
    assert found == ["It is a [asked].", None, "[offered] is not [asked]."]


@pytest.mark.parametrize(
    ("rationale", "expected"),
    [
        ("Mugs, for tea", "[asked], for [asked]"),  # a plural; a word of grammar stays
        ("RED mug's handle", "[asked] handle"),  # of equal placeholders in a row one is left
        ("a blue mug of glass", "a [offered] [asked] of glass"),
        ("the 2 pieces", "the [offered]"),
        ("a glassy reddish thing", "a glassy reddish thing"),
    ],
)
def test_what_counts_as_a_word(rationale: str, expected: str) -> None:
    assert delexicalised(rationale, **PAIR) == expected


def test_the_texts_of_controls() -> None:
    found = texts(text="rationale", controls=("permuted", "template", "nearest_title"))
    assert found["template"] == ["label Exact, confidence 0.82", None, "label Substitute, confidence 0.60"]
    assert sorted(found["permuted"][0].split()) == sorted(["It", "is", "a", "mug."]) and found["permuted"][1] is None
    assert found["query"] == PAIR["query"] and found["title"] == PAIR["title"]


def test_a_permutation_depends_on_text_and_seed_alone() -> None:
    text = " ".join(map(str, range(30)))
    assert permuted(text, "p/0") == permuted(text, "p/0") != permuted(text, "p/1")
    assert permuted(text, "p/0") != text and permuted("", "p/0") == ""


def test_a_stated_verdict() -> None:
    assert stated("I", [0.1, 0.1, 0.1, 0.7], ESCI) == "label Irrelevant, confidence 0.70"


def test_only_the_residual_and_two_controls_need_vectors_of_the_pair() -> None:
    assert not TargetSettings(controls=("permuted", "template"), transform="centred").embeds_pairs
    assert TargetSettings(transform="residual").embeds_pairs and TargetSettings(controls=("query_title",)).embeds_pairs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimensions": 32}, "targets.dimensions has no effect without targets.transform = 'residual'"),
        ({"transform": "residual", "controls": ("query_title",)}, "'query_title' would be nothing"),
    ],
)
def test_settings_without_effect_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TargetSettings(**changes)
