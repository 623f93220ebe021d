"""What a generation with the scripted engine is to ask, for tests that need no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from mpcot.asking.plan import GenerationPlan
from mpcot.config import AnswerSettings, PerspectiveSettings, ScriptedEngine
from mpcot.perspectives.perspective import load_perspectives
from mpcot.records import PAIR
from mpcot.schemes.scheme import load_scheme


def scripted_plan(ask: AnswerSettings, engine: ScriptedEngine | None = None) -> GenerationPlan:
    """Return a plan of E, S, C and I and the shipped perspectives."""
    return GenerationPlan(
        model="scripted/none",
        model_digest="aaaa",
        engine=engine or ScriptedEngine(),
        scheme=load_scheme("esci"),
        perspectives=load_perspectives(PerspectiveSettings()),
        ask=ask,
        seed=1,
    )


PLAN = scripted_plan(AnswerSettings(samples=2))


def pair(number: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a labelled training pair."""
    row = {name: None for name in PAIR.names} | {"pair_id": f"p{number}", "query_id": "q", "product_id": "x"}
    row |= {"locale": "us", "query": "red drill", "title": f"drill {number}", "label": "E", "split": "train"}
    return row | changes


def batches(pairs: Sequence[dict[str, Any]], size: int = 1000) -> list[pa.RecordBatch]:
    """Return pairs as stages read them, `size` at a time."""
    return pa.Table.from_pylist(list(pairs), PAIR).to_batches(size)


def keys(plan: GenerationPlan = PLAN, row: dict[str, Any] | None = None) -> dict[tuple[str, int], str]:
    """Return the keys of a pair's requests by perspective and sample."""
    return {(p.name, sample): ask.key for p, sample, ask in plan.asks(row or pair())}
