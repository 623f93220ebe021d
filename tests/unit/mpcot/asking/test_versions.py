"""Keys and prompts change only with their version: otherwise paid answers would be lost, or others taken for them."""

from __future__ import annotations

import pytest

from cluster.base.stage_folder import digest
from mpcot.asking.answer_keys import KEY_VERSION
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.asking.plan import GenerationPlan
from mpcot.asking.prompts import PROMPT_VERSION, Message
from mpcot.asking.rendering import RENDERING_VERSION, render
from mpcot.config import (
    AnswerSettings,
    Engine,
    JudgeSettings,
    RationaleSettings,
    SampleSettings,
    ScriptedEngine,
    VllmEngine,
)
from mpcot.perspectives.perspective import Example, Perspective
from mpcot.schemes.scheme import Label, Scheme
from tests.helpers.scripted_plan import pair
from tests.helpers.tiny_llama import TEMPLATE, tiny_llama_tokenizer

# By version. Where a test below fails, either take the change back, or raise the version and put its digest here.
KEYS = {1: "da8b4fc8f05b8f40"}
PROMPTS = {1: "e18faa20c328ee48"}
RENDERED = {1: "de3afcec2350a4e1"}
PERSPECTIVE = Perspective(
    name="fit",
    question="Does it fit?",
    short="Fits?",
    rules=("Look at the size.",),
    examples=(Example(query="a mug", title="Mug", rationale="It is one.", verdicts={"two": "Y"}),),
)
SCHEME = Scheme(
    name="two",
    order="First look at the type.",
    silent="What is not said is not so.",
    labels=(
        Label(code="Y", name="Yes", gain=1, relevant=True, meaning="It fits.", guide="It is what was asked for."),
        Label(code="N", name="No", gain=0, relevant=False, meaning="It does not fit."),
    ),
)
PAIR = pair(
    label="Y", brand="Maple", bullets="Light\nRed", description="A drill <|im_end|> of 18 V.",
    attributes=[("colour", "red"), ("volt", "18")],
)  # fmt: skip
ADDRESS = OpenAiEngine(base_url="http://host/v1", model="m")
TEMPLATES = TEMPLATE, "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<think>\n{% endif %}{% endfor %}"


def plan(engine: Engine, ask: AnswerSettings, hinted: bool = False) -> GenerationPlan:
    return GenerationPlan("m", "aaaa", engine, SCHEME, (PERSPECTIVE,), ask, seed=1, hinted=hinted)


def prompts() -> list[list[Message]]:
    asked = AnswerSettings(), AnswerSettings(few_shot=1), JudgeSettings(confidence=True), AnswerSettings(guide="short")
    plans = [plan(ADDRESS, ask, hinted) for ask in asked for hinted in (False, True)]
    return [ask.chat for one in plans for _, _, ask in one.asks(PAIR)]


def test_keys_stay_what_they_are() -> None:
    """A new setting must be left out of the keys at its default."""
    asked = AnswerSettings(), RationaleSettings(), SampleSettings(), JudgeSettings(confidence=True)
    plans = [plan(engine, ask) for engine in (ScriptedEngine(), VllmEngine(), ADDRESS) for ask in asked]
    assert digest([ask.key for one in plans for _, _, ask in one.asks(PAIR)]) == KEYS[len(KEYS)]
    assert len(KEYS) == (KEY_VERSION if isinstance(KEY_VERSION, int) else 1)


@pytest.mark.parametrize(
    ("ask", "hinted", "expected"),
    [
        (AnswerSettings(), False, ["dc108b8f5ee1e1896d6e81ee93b50076"]),
        (AnswerSettings(), True, ["83e9397b1d402d22f283c31a4c0904d1"]),
        (
            AnswerSettings(few_shot=1, samples=2),
            False,
            ["b2ea34d8f8993a60923055b77eb964c4", "82bf2388d103c1532d561aa4b8d88f21"],
        ),
        (JudgeSettings(confidence=True, description_chars=8), False, ["4663c9ce42eeffa3173e5e37ee3664db"]),
    ],
    ids=["plain", "hinted", "with an example", "with a confidence"],
)
def test_a_few_keys_in_full(ask: AnswerSettings, hinted: bool, expected: list[str]) -> None:
    assert [found.key for _, _, found in plan(ADDRESS, ask, hinted).asks(PAIR)] == expected


def test_prompts_stay_what_they_are() -> None:
    assert digest(prompts()) == PROMPTS[PROMPT_VERSION], "raise PROMPT_VERSION"


def test_rendered_prompts_stay_what_they_are() -> None:
    tokenizers = [tiny_llama_tokenizer(template) for template in (*TEMPLATES, None)]
    chat = [{"role": "system", "content": "You judge."}, {"role": "user", "content": "Query: drill"}]
    found = [render(tokenizer, chat, thinking) for tokenizer in tokenizers for thinking in (False, True)]
    assert digest(found) == RENDERED[RENDERING_VERSION], "raise RENDERING_VERSION"


@pytest.mark.parametrize("change", [{"samples": 5}, {"retries": 3, "max_failed_share": 0.9}])
def test_keys_do_not_depend_on_patience(change: dict[str, float]) -> None:
    first, second = (plan(ADDRESS, AnswerSettings(**settings)) for settings in ({}, change))
    assert next(first.asks(PAIR))[2].key == next(second.asks(PAIR))[2].key
