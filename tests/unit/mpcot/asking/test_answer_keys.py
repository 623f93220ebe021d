"""An answer's key is all that decides it: what must be asked again after a change, and what must not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import create_model

from cluster.base.errors import UserError
from mpcot.asking.worker import requests_of
from mpcot.config import AnswerSettings, JudgeSettings, RationaleSettings, Replicas, ScriptedEngine, VllmEngine
from mpcot.perspectives.perspective import Perspective
from mpcot.schemes.scheme import load_scheme
from tests.helpers.scripted_plan import PLAN, keys, pair


def test_every_request_has_a_key_and_a_seed_of_its_own() -> None:
    asks = [ask for number in range(50) for _, _, ask in PLAN.asks(pair(number))]
    assert len(asks) == 50 * 3 * 2
    assert len({ask.key for ask in asks}) == len(asks)
    assert len({ask.seed for ask in asks}) > 0.99 * len(asks) and all(0 <= ask.seed < 2**31 for ask in asks)
    assert keys() == keys()


@pytest.mark.parametrize(
    "change",
    [
        {"model_digest": "bbbb"},
        {"seed": 2},
        {"engine": ScriptedEngine(accuracy=0.9)},
        {"engine": VllmEngine()},
        {"scheme": load_scheme("graded")},
        {"ask": AnswerSettings(samples=2, temperature=0.1)},
        {"ask": AnswerSettings(samples=2, max_tokens=12)},
        {"ask": AnswerSettings(samples=2, max_chars=50)},
        {"ask": AnswerSettings(samples=2, few_shot=1)},
        {"ask": AnswerSettings(samples=2, guide="short")},
        {"ask": AnswerSettings(samples=2, words=(5, 9))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_an_answer_makes_every_key_new(change: dict[str, Any]) -> None:
    assert not set(keys().values()) & set(keys(replace(PLAN, **change)).values())


@pytest.mark.parametrize(
    "change",
    [
        {"model": "/elsewhere/models/a"},
        {"engine": ScriptedEngine(delay_s=1.0, replicas=Replicas(max=4, cpus=2, flush_rows=1))},
        {"ask": AnswerSettings(samples=2, splits=("train", "dev"), pairs_per_split=9)},
        {"ask": AnswerSettings(samples=2, retry_temperature=0.1)},
        {"ask": AnswerSettings(samples=2, retries=5, max_failed_share=0.9)},
        {"ask": RationaleSettings(samples=2, filters=("verdict", "length"), hinted_retry=True)},
    ],
    ids=["where the model lies", "resources", "which pairs", "what no retry uses", "patience", "sorting"],
)
def test_what_decides_no_answer_keeps_every_key(change: dict[str, Any]) -> None:
    assert keys(replace(PLAN, **change)) == keys()


def test_a_confidence_is_in_the_keys_only_if_it_is_asked_for() -> None:
    """Settings as they were before there was a confidence have the keys of those without one."""
    fields: dict[str, Any] = {name: (Any, JudgeSettings.model_fields[name].default) for name in ("budget_pairs", "fit")}
    before = create_model("Before", __base__=AnswerSettings, **fields)(temperature=0.0)
    off, on = (keys(replace(PLAN, ask=JudgeSettings(confidence=asked))) for asked in (False, True))
    assert off == keys(replace(PLAN, ask=before))
    assert not set(off.values()) & set(on.values())


def test_a_larger_budget_keeps_every_key() -> None:
    small, large = (keys(replace(PLAN, ask=JudgeSettings(budget_pairs=most))) for most in (5, None))
    assert small == large


def test_engine_settings_of_speed_alone_keep_every_key() -> None:
    slow, fast = VllmEngine(), VllmEngine(max_num_seqs=4, enforce_eager=True, gpu_memory_utilization=0.5)
    assert keys(replace(PLAN, engine=slow)) == keys(replace(PLAN, engine=fast))
    for other in (VllmEngine(dtype="float32"), VllmEngine(thinking="on")):
        assert keys(replace(PLAN, engine=slow)) != keys(replace(PLAN, engine=other))
    assert keys(replace(PLAN, engine=slow)) == keys(replace(PLAN, engine=VllmEngine(thinking_tokens=99)))


def test_more_samples_and_more_perspectives_keep_what_was_paid_for() -> None:
    more = keys(replace(PLAN, ask=AnswerSettings(samples=5)))
    assert len(more) == 15 and keys().items() <= more.items()
    fourth = Perspective(name="season", question="Is it of the season?")
    added = keys(replace(PLAN, perspectives=(fourth, *PLAN.perspectives)))
    assert len(added) == 8 and keys().items() <= added.items()


def test_a_changed_question_is_asked_again_of_that_perspective_alone() -> None:
    changed = PLAN.perspectives[1].model_copy(update={"question": "Which attributes differ?"})
    new = keys(replace(PLAN, perspectives=(PLAN.perspectives[0], changed, PLAN.perspectives[2])))
    assert {place for place, key in keys().items() if new[place] != key} == {(changed.name, 0), (changed.name, 1)}


def test_a_changed_product_is_another_request_but_its_label_is_not() -> None:
    assert not set(keys(row=pair(title="another drill")).values()) & set(keys().values())
    assert keys(row=pair(label="I", split="dev")) == keys()
    blind = replace(PLAN, ask=AnswerSettings(samples=2, description_chars=0))
    assert keys(blind, pair(description="unused")) == keys(blind) and keys(row=pair(description="used")) != keys()


def test_a_worker_that_would_ask_otherwise_says_so() -> None:
    """Another version of the prompts on a node must not end in rows that nobody answers."""
    row = pair() | {"keys": list(keys().values())[:2]}
    assert [ask.key for _, _, ask in requests_of(PLAN, row)] == row["keys"]
    with pytest.raises(UserError, match="run one version of broadfast on all nodes"):
        requests_of(replace(PLAN, seed=2), row)
