"""The arm of the generation benchmark that asks in the usual order does ask in another one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from mpcot.asking.prompts import question
from tests.helpers.scripted_plan import PLAN

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_one_arm_puts_the_question_before_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import generation  # type: ignore[import-not-found]

    pair = generation.product(1)
    first = generation.PerspectiveFirst(*(getattr(PLAN, field.name) for field in fields(PLAN)))
    ours, turned = list(PLAN.asks(pair)), list(first.asks(pair))
    assert len(ours) == len(turned) == 6
    for (perspective, _, own), (_, _, other) in zip(ours, turned, strict=True):
        asked, product = question(perspective, PLAN.ask.guide), own.chat[-1]["content"].partition("\n\n")[0]
        assert own.chat[-1]["content"].startswith("Query: ") and own.chat[-1]["content"].endswith(asked)
        assert other.chat[-1]["content"] == f"{asked}\n\n{product}"
        assert other.chat[0] == own.chat[0] and other.key == own.key
