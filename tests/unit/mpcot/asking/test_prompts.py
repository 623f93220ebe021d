"""Prompts share what they can, and answers survive the way to the engine and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from cluster.base.errors import UserError
from mpcot.asking.parsing import parse_answer
from mpcot.asking.prompts import HINT, answer, answer_regex, messages, pair_text, render
from mpcot.config import PerspectiveSettings
from mpcot.perspectives.perspective import SHIPPED, Perspective, load_perspectives
from mpcot.schemes.scheme import SCHEMES, load_scheme
from tests.helpers.tiny_llama import tiny_llama_tokenizer

NAMES = sorted(path.stem for path in SCHEMES.glob("*.toml"))
PAIR = {"query": "red drill", "title": "Cordless drill, red", "brand": "Mug", "description": "18 V. " * 40}
ALL = load_perspectives(PerspectiveSettings())


def shared_start(texts: list[Any]) -> Any:
    """What all begin with: characters of texts, ids of token lists."""
    return texts[0][: len(list(takewhile(alike, zip(*texts, strict=False))))]


def alike(column: Sequence[Any]) -> bool:
    return len(set(column)) == 1


def chats(few_shot: int = 0, scheme: str = "esci") -> list[str]:
    tokenizer = tiny_llama_tokenizer()
    return [render(tokenizer, messages(PAIR, p, load_scheme(scheme), few_shot)) for p in ALL]


def test_the_perspectives_of_a_pair_share_everything_up_to_the_question() -> None:
    """What comes before the question is one prefix for the engine's cache, token by token."""
    texts = chats()
    shared = shared_start(texts)
    for perspective, text in zip(ALL, texts, strict=True):
        before, question, after = text.partition(perspective.question)
        assert question and shared.startswith(before)
        assert PAIR["query"] in before and PAIR["title"] in before and "Exact" in before
        assert PAIR["query"] not in after
    tokenizer = tiny_llama_tokenizer()
    tokens = [tokenizer.encode(text) for text in texts]
    common = len(shared_start(tokens))
    assert common >= len(tokenizer.encode(shared)) - 1


@pytest.mark.parametrize("few_shot", [0, 1])
def test_a_hint_comes_last_and_changes_nothing_before_it(few_shot: int) -> None:
    scheme = load_scheme("esci")
    for perspective in ALL:
        plain, hinted = (messages(PAIR, perspective, scheme, few_shot, hint=hint) for hint in (None, "S"))
        before, told, after = hinted[-1]["content"].partition(f"\n\n{HINT}")
        assert told and before == plain[-1]["content"] and hinted[0] == plain[0]
        assert "S (Substitute)" in after and HINT not in plain[-1]["content"]


def test_examples_come_after_what_is_shared() -> None:
    shared = shared_start(chats(few_shot=1))
    assert PAIR["title"] in shared
    assert all(p.examples[0].rationale not in shared for p in ALL)
    assert all(p.examples[0].rationale in text for p, text in zip(ALL, chats(few_shot=1), strict=True))


def test_no_perspective_leaks_into_another() -> None:
    for text, own in zip(chats(few_shot=5), ALL, strict=True):
        for other in ALL:
            if other is not own:
                assert other.question not in text and other.examples[0].rationale not in text


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_back_and_is_what_the_engine_allows(name: str) -> None:
    scheme = load_scheme(name)
    form = re.compile(answer_regex(scheme, 20, 200))
    for code in scheme.codes:
        for rationale in ("The shopper wants a drill. This is one.", 'Says "Verdict: E" in the text, not at the end.'):
            text = answer(rationale, code)
            assert form.fullmatch(text)
            parsed = parse_answer(text, scheme)
            assert (parsed.rationale, parsed.verdict, parsed.reason) == (rationale, code, None)
    for bad in (answer("Too short.", scheme.codes[0]), answer("x" * 201, scheme.codes[0]), answer("x" * 30, "?"),
                "two lines\nof a rationale\nVerdict: " + scheme.codes[0], "x" * 30):  # fmt: skip
        assert not form.fullmatch(bad)


def test_codes_that_mean_something_in_a_pattern_are_escaped() -> None:
    scheme = load_scheme("esci")
    odd = scheme.model_copy(update={"labels": (scheme.labels[0].model_copy(update={"code": "E+"}), scheme.labels[3])})
    form = answer_regex(odd, 1, 50)
    assert re.fullmatch(form, answer("right", "E+")) and not re.fullmatch(form, answer("right", "EE"))


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_perspective_has_examples_for_every_shipped_scheme(name: str) -> None:
    scheme = load_scheme(name)
    for path in sorted(SHIPPED.glob("*.toml")):
        (perspective,) = load_perspectives(PerspectiveSettings(names=(path.stem,)))
        assert len(perspective.examples) >= 2
        for example in perspective.examples:
            assert example.verdicts[name] in scheme.codes
            said = answer(example.rationale, example.verdicts[name])
            assert parse_answer(said, scheme).reason is None and "\n" not in example.rationale


def test_examples_without_a_verdict_in_the_scheme_are_left_out() -> None:
    own = load_scheme("esci").model_copy(update={"name": "own"})
    chat = messages(PAIR, ALL[0], own, few_shot=3)
    assert "Examples" not in chat[1]["content"]
    assert chat == messages(PAIR, ALL[0], own, few_shot=0)


def test_brand_and_description_are_shown_where_they_tell_something() -> None:
    assert pair_text(PAIR) == "Query: red drill\nProduct: Cordless drill, red\nBrand: Mug"
    assert "Brand" not in pair_text(PAIR | {"title": "MUG drill"})
    assert "Brand" not in pair_text(PAIR | {"brand": None})
    assert pair_text(PAIR, 4).endswith("Details: 18 V")
    assert "Details" not in pair_text(PAIR | {"description": None}, 4)


def test_a_model_without_a_chat_template_gets_plain_text() -> None:
    chat = messages(PAIR, ALL[0], load_scheme("esci"))
    text = render(tiny_llama_tokenizer(template=None), chat)
    assert text == f"{chat[0]['content']}\n\n{chat[1]['content']}\n\n"


def write_perspective(folder: Path, name: str, called: str | None = None, body: str = "") -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.toml").write_text(f'name = "{called or name}"\nquestion = "Why?"\n{body}')


def test_ones_own_perspective_is_a_file(tmp_path: Path) -> None:
    write_perspective(tmp_path / "own", "season")
    write_perspective(tmp_path / "own", "intent")
    settings = PerspectiveSettings(names=("rules", "season", "intent"), folder=str(tmp_path / "own"))
    loaded = load_perspectives(settings)
    assert [p.name for p in loaded] == ["rules", "season", "intent"]
    assert loaded[2] == Perspective(name="intent", question="Why?")


@pytest.mark.parametrize(
    ("name", "called", "body", "says"),
    [
        ("season", "winter", "", "has the name 'winter'. Name it as the file, 'season'"),
        ("season", None, "colour = 1", "colour"),
        ("season", None, "[[examples]]\nquery = 1", "does not describe a perspective"),
        ("season", None, "broken =", "does not describe a perspective"),
    ],
)
def test_a_file_that_is_no_perspective(tmp_path: Path, name: str, called: str | None, body: str, says: str) -> None:
    write_perspective(tmp_path, name, called, body)
    with pytest.raises(UserError, match=says):
        load_perspectives(PerspectiveSettings(names=(name,), folder=str(tmp_path)))


def test_a_perspective_without_a_file_names_those_there_are(tmp_path: Path) -> None:
    write_perspective(tmp_path, "season")
    with pytest.raises(UserError, match=r"there is no file wether\.toml, only attributes, intent, rules, season"):
        load_perspectives(PerspectiveSettings(names=("wether",), folder=str(tmp_path)))


def test_a_model_that_can_think_by_itself_is_asked_not_to() -> None:
    """The form has no room for it: what it thinks would be the rationale, cut off somewhere."""
    tokenizer = tiny_llama_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}\n{% endfor %}"
        "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    )
    assert render(tokenizer, [{"role": "user", "content": "hello"}]) == "hello\n<think></think>"
