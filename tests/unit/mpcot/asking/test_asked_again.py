"""Settings that matter to some requests alone make only those new."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from mpcot.asking.failure_reasons import too_long
from mpcot.asking.plan import GenerationPlan
from mpcot.config import AnswerSettings, VllmEngine
from mpcot.records import PAIR
from tests.helpers.scripted_plan import scripted_plan

PLAN = scripted_plan(AnswerSettings())
ROW = dict.fromkeys(PAIR.names) | {"pair_id": "p", "query": "drill", "title": "Drill", "label": "E"}


def keys(plan: GenerationPlan) -> set[str]:
    return {ask.key for _, _, ask in plan.asks(ROW)}


def test_the_retries_temperature_counts_where_it_is_used() -> None:
    for temperature, alike in ((0.0, False), (0.7, True)):
        asked = [AnswerSettings(temperature=temperature, retry_temperature=retries) for retries in (0.7, 0.1)]
        first, second = (keys(replace(PLAN, ask=ask)) for ask in asked)
        assert (first == second) is alike


def test_a_longer_engine_asks_only_what_was_too_long() -> None:
    """Where descriptions are cut, the limit decides how much of them is read."""
    short, long = (replace(PLAN, engine=VllmEngine(max_model_len=length)) for length in (1024, 4096))
    assert keys(short) == keys(long)
    cutting = AnswerSettings(description_chars=900, when_too_long="cut")
    assert not keys(replace(short, ask=cutting)) & keys(replace(long, ask=cutting))
    reasons = [None, too_long(990, 768, False), too_long(4000, 3840, False), too_long(990, 768, True)]
    batch = pa.RecordBatch.from_pylist([{"reason": reason, "tries": 1} for reason in reasons])
    assert short.settled(batch).to_pylist() == [True, True, False, False]
    assert long.settled(batch).to_pylist() == [True, False, True, False]
    assert replace(short, ask=cutting).settled(batch).to_pylist() == [True, False, False, True]
