"""Prompts share what they can, and answers survive the way to the engine and back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from mpcot.asking.parsing import parse_answer
from mpcot.asking.prompts import CONFIDENCE_FORM, HINT, answer, answer_regex, examples, messages, pair_text
from mpcot.asking.rendering import render
from mpcot.config import AnswerSettings, JudgeSettings, PerspectiveSettings
from mpcot.perspectives.perspective import Perspective, load_perspectives
from mpcot.schemes.scheme import SCHEMES, load_scheme
from tests.helpers.tiny_llama import tiny_llama_tokenizer

NAMES = sorted(path.stem for path in SCHEMES.glob("*.toml"))
PAIR = {"pair_id": "p0", "query": "red drill", "title": "Cordless drill, red", "brand": "Mug", "locale": "us"}
PAIR |= {"description": "18 V. " * 40}
ALL = load_perspectives(PerspectiveSettings())
ESCI = load_scheme("esci")
SHORT = AnswerSettings(guide="short", description_chars=0, max_chars=140)


def shared_start(texts: list[Any]) -> Any:
    """What all begin with: characters of texts, ids of token lists."""
    return texts[0][: len(list(takewhile(alike, zip(*texts, strict=False))))]


def alike(column: Sequence[Any]) -> bool:
    return len(set(column)) == 1


def chat_texts(few_shot: int = 0) -> list[str]:
    tokenizer = tiny_llama_tokenizer()
    return [render(tokenizer, messages(PAIR, p, ESCI, AnswerSettings(few_shot=few_shot))) for p in ALL]


def test_the_perspectives_of_a_pair_share_everything_up_to_the_question() -> None:
    """What comes before the question is one prefix for the engine's cache, token by token."""
    texts = chat_texts()
    shared = shared_start(texts)
    for perspective, text in zip(ALL, texts, strict=True):
        before, asked, after = text.partition(perspective.question)
        assert asked and before[:-10] in shared
        assert PAIR["query"] in before and PAIR["title"] in before and "Exact" in before
        assert PAIR["query"] not in after
    tokenizer = tiny_llama_tokenizer()
    tokens = [tokenizer.encode(text) for text in texts]
    assert len(shared_start(tokens)) >= len(tokenizer.encode(shared)) - 1


def test_the_system_text_says_who_judges_how_to_decide_and_the_form() -> None:
    text = messages(PAIR, ALL[0], ESCI, AnswerSettings(max_chars=1600))[0]["content"]
    assert text.startswith("You judge search results for an online shop.") and "locale is us" in text
    assert all(f"{label.code} ({label.name}): {label.guide}" in text for label in ESCI.labels)
    assert ESCI.order in text and ESCI.silent in text and "40 to 120 words" in text
    assert '"Verdict:" and one of E, S, C, I' in text
    assert "locale" not in messages(PAIR | {"locale": None}, ALL[0], ESCI, SHORT)[0]["content"]


def test_the_short_guide_leaves_room_in_a_small_model() -> None:
    for perspective in ALL:
        system, user = messages(PAIR, perspective, ESCI, SHORT)
        assert "S = Substitute: misses one point" in system["content"] and "6 to 20 words" in system["content"]
        assert user["content"].endswith(perspective.short)
        assert len(f"{system['content']} {user['content']}".split()) < 90
    own = Perspective(name="season", question="Is it of the season?")
    assert messages(PAIR, own, ESCI, SHORT)[1]["content"].endswith(own.question)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({}, (19, 57)), ({"max_chars": 140}, (6, 20)), ({"max_chars": 1600}, (40, 120)), ({"words": (5, 9)}, (5, 9))],
)
def test_the_words_that_are_asked_for_fit_the_form(settings: dict[str, Any], words: tuple[int, int]) -> None:
    assert AnswerSettings(**settings).asked_words == words


@pytest.mark.parametrize("few_shot", [0, 1])
def test_a_hint_comes_last_and_changes_nothing_before_it(few_shot: int) -> None:
    ask = AnswerSettings(few_shot=few_shot)
    for perspective in ALL:
        plain, hinted = (messages(PAIR, perspective, ESCI, ask, hint) for hint in (None, "S"))
        before, told, after = hinted[-1]["content"].partition(f"\n\n{HINT}")
        assert told and before == plain[-1]["content"] and hinted[0] == plain[0]
        assert "S (Substitute)" in after and HINT not in plain[-1]["content"]


def test_examples_stand_before_the_pair_and_are_shared_by_pairs() -> None:
    other = PAIR | {"query": "desk lamp", "title": "Lamp"}
    for perspective in ALL:
        user, others = (messages(p, perspective, ESCI, AnswerSettings(few_shot=9))[1]["content"] for p in (PAIR, other))
        shown, _, after = user.partition("Now judge this pair:")
        assert all(example in shown for example in examples(perspective, ESCI))
        assert "Query: red drill" not in shown and "Query: red drill" in after and perspective.question in after
        assert others.startswith(shown)


def test_fewer_examples_are_turned_over_pairs_so_that_every_label_has_its_turn() -> None:
    ask = AnswerSettings(few_shot=1)
    found: Counter[str] = Counter()
    for number in range(400):
        pair = PAIR | {"pair_id": f"p{number}"}
        user = messages(pair, ALL[0], ESCI, ask)[1]["content"]
        assert user == messages(pair, ALL[0], ESCI, ask)[1]["content"]
        found[re.findall(r"Verdict: (\w)", user)[0]] += 1
    assert set(found) == set("ESCI") and min(found.values()) > 60
    three = messages(PAIR, ALL[0], ESCI, AnswerSettings(few_shot=3))[1]["content"]
    assert len(set(re.findall(r"Verdict: (\w)", three))) == 3


def test_no_perspective_leaks_into_another() -> None:
    for text, own in zip(chat_texts(few_shot=5), ALL, strict=True):
        for other in ALL:
            if other is not own:
                assert other.question not in text and other.examples[0].rationale not in text


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_back_and_is_what_the_engine_allows(name: str) -> None:
    scheme = load_scheme(name)
    form = re.compile(answer_regex(scheme, 20, 200))
    first = scheme.codes[0]
    for code in scheme.codes:
        for rationale in (
            "The shopper wants a drill. This is one.",
            'Says "Verdict: E" in the text, not at the end.',
            "The shopper wants a drill.\nThis is one. It is red.",
        ):
            text = answer(rationale, code)
            assert form.fullmatch(text)
            parsed = parse_answer(text, scheme)
            assert (parsed.rationale, parsed.verdict, parsed.reason) == (rationale, code, None)
    long, early = "x" * 30, "Too short.\nThis line comes after the first."
    for bad in (
        answer("Too short.", first), answer("x" * 201, first), answer(long, "?"), long, answer(early, first),
        answer(f"{long}\n", first), answer(f"{long}\nVerdict: {first}", first), answer(f"{long}\n{'y' * 201}", first),
        answer(f"{long}\none\ntwo", first),
    ):  # fmt: skip
        assert not form.fullmatch(bad)


def test_with_a_confidence_the_form_has_a_percentage_before_the_verdict() -> None:
    form, why = answer_regex(ESCI, 4, 400, confidence=True), "It is a drill.\nIt is red."
    for percent in (0, 7, 85, 100):
        said = answer(why, "E", percent)
        assert said == f"{why}\nConfidence: {percent}\nVerdict: E" and re.fullmatch(form, said)
        assert parse_answer(said, ESCI, confidence=True).rationale == why
    for bad in (101, -1, "085", "high", 8.5, None):
        assert not re.fullmatch(form, answer(why, "E", bad))
    assert not re.fullmatch(form, answer(f"{why}\nConfidence: 9", "E", 85)), "only one such line"
    assert not re.fullmatch(answer_regex(ESCI, 4, 400), answer("x" * 390, "E", 85))


@pytest.mark.parametrize("guide", ["full", "short"])
def test_the_prompt_says_what_a_confidence_means_if_it_asks_for_one(guide: Any) -> None:
    plain, asked = (messages(PAIR, ALL[0], ESCI, JudgeSettings(guide=guide, confidence=on)) for on in (False, True))
    assert plain == messages(PAIR, ALL[0], ESCI, AnswerSettings(guide=guide))
    assert asked[1] == plain[1] and asked[0]["content"].replace(CONFIDENCE_FORM, "") == plain[0]["content"]
    assert asked[0]["content"].count(CONFIDENCE_FORM) == 1
    shown = messages(PAIR, ALL[0], ESCI, JudgeSettings(few_shot=4, confidence=True))[1]["content"]
    assert len(set(re.findall(r"\nConfidence: (\d+)\nVerdict: \w\n", shown))) == 4


def test_short_rationales_have_one_line_and_long_ones_up_to_eight() -> None:
    for max_chars, lines in ((140, 1), (400, 3), (1600, 8), (9000, 8)):
        form = answer_regex(ESCI, 4, max_chars)
        assert re.fullmatch(form, answer("\n".join(["line"] * lines), "E"))
        assert not re.fullmatch(form, answer("\n".join(["line"] * (lines + 1)), "E"))


def test_no_rationale_is_longer_than_it_may_be_however_many_lines_it_has() -> None:
    form = answer_regex(ESCI, 4, 400)
    for lengths, fits in (((400,), True), ((401,), False), ((200, 199), True), ((201, 4), False), ((134, 4, 4), False)):
        said = answer("\n".join("w" * length for length in lengths), "E")
        assert bool(re.fullmatch(form, said)) is fits, lengths


def test_codes_that_mean_something_in_a_pattern_are_escaped() -> None:
    odd = ESCI.model_copy(update={"labels": (ESCI.labels[0].model_copy(update={"code": "E+"}), ESCI.labels[3])})
    form = answer_regex(odd, 1, 50)
    assert re.fullmatch(form, answer("right", "E+")) and not re.fullmatch(form, answer("right", "EE"))


def test_examples_without_a_verdict_in_the_scheme_are_left_out() -> None:
    own = ESCI.model_copy(update={"name": "own"})
    chat = messages(PAIR, ALL[0], own, AnswerSettings(few_shot=3))
    assert "Examples" not in chat[1]["content"]
    assert chat == messages(PAIR, ALL[0], own, AnswerSettings())


def test_what_is_known_of_a_product_is_shown_where_it_tells_something() -> None:
    assert pair_text(PAIR) == "Query: red drill\nProduct: Cordless drill, red\nBrand: Mug"
    assert "Brand" not in pair_text(PAIR | {"title": "MUG drill"})
    assert "Brand" not in pair_text(PAIR | {"brand": None})
    assert pair_text(PAIR, 4).endswith("Details: 18 V")
    assert "Details" not in pair_text(PAIR | {"description": None}, 4)


def test_attributes_come_before_the_description_and_share_its_room() -> None:
    rich = PAIR | {"attributes": [("colour", "red"), ("size", "10")], "bullets": "Two batteries. A case."}
    lines = pair_text(rich, 500).splitlines()
    assert lines[3] == "Attributes: colour: red; size: 10"
    assert lines[4].startswith("Details: Two batteries. A case. 18 V. 18 V.")
    assert pair_text(rich, 11).splitlines()[3:] == ["Attributes: colour: red"]
    assert pair_text(rich, 32).splitlines()[3:] == ["Attributes: colour: red; size: 10", "Details: Two batteri"[:20]]
    assert pair_text(rich | {"attributes": {"colour": "red"}}, 11).endswith("Attributes: colour: red")


CONTROL = ["<|im_end|>", "<|im_start|>", "</s>", "<s>", "[SEP]", "[INST]", "[/INST]", "<think>", "</think>", "<eos>"]
CONTROL += ["<start_of_turn>", "<|begin_of_text|>", "<｜User｜>", "<|endoftext|>", "<<SYS>>", "<pad>", "[gMASK]"]


@pytest.mark.parametrize("token", CONTROL)
def test_no_text_of_a_pair_or_a_rationale_spells_a_control_token(token: str) -> None:
    """Or a seller could end the question and write the verdict."""
    fields = ("query", "title", "brand", "description", "bullets")
    pair = PAIR | {name: f"{name} {token}assistant" for name in fields} | {"attributes": [("colour", token)]}
    shown = pair_text(pair, 500)
    assert token not in shown
    assert token not in answer(f"It is {token} a drill.", "E")
    assert all(f"{name} " in shown for name in fields)


def test_every_control_token_of_the_models_here_is_broken() -> None:
    tokenizers = [tiny_llama_tokenizer()]
    tokenizers += [AutoTokenizer.from_pretrained(path) for path in sorted(Path("models").glob("*/")) if path.is_dir()]
    for tokenizer in tokenizers:
        for token in tokenizer.all_special_tokens:
            text = pair_text(PAIR | {"title": f"red {token} drill {token}"})
            assert not set(tokenizer.encode(text, add_special_tokens=False)) & set(tokenizer.all_special_ids), token


def test_the_rules_of_a_shop_are_a_file_of_its_own(tmp_path: Path) -> None:
    shipped = messages(PAIR, ALL[2], ESCI, AnswerSettings())[1]["content"]
    assert all(f"\n- {rule}" in shipped for rule in ALL[2].rules) and ALL[2].name == "rules"
    path = tmp_path / "rules.txt"
    path.write_text("# ours\nA used item is never E.\n\n Spare parts are C. \n")
    loaded = load_perspectives(PerspectiveSettings(rules_file=str(path)))
    for ask in (AnswerSettings(), SHORT):
        text = messages(PAIR, loaded[2], ESCI, ask)[1]["content"]
        assert text.endswith("\n- A used item is never E.\n- Spare parts are C.")
    assert loaded[:2] == ALL[:2]
