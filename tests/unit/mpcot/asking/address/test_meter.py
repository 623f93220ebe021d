"""The meter: requests and tokens evenly over time, and a budget that is not passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.base.tables import write_table
from mpcot.asking.address.meter import Grant, Meter, spent_in, usage_figures, usage_of, usage_said
from mpcot.asking.answers import OF_BATCH
from mpcot.asking.engines.config import OpenAiEngine, Price
from mpcot.config import ScriptedEngine
from mpcot.records import ANSWER

PRICE = Price(input=1.0, cached_input=0.5, output=4.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def meter(clock: Clock | None = None, spent: float = 0.0, **engine: Any) -> Meter:
    made = OpenAiEngine(**{"base_url": "http://host/v1", "model": "m", "timeout_s": 10.0} | engine)
    return Meter(made, spent, clock or Clock())


def test_without_limits_all_may_go_at_once() -> None:
    made = meter()
    assert [made.reserve(1000, 1000) for _ in range(50)] == [Grant(True, 0.0)] * 50


def test_requests_are_spaced_evenly() -> None:
    clock = Clock()
    made = meter(clock, requests_per_minute=120)
    assert [made.reserve(1, 1).wait_s for _ in range(3)] == [0.0, 0.5, 1.0]
    clock.now += 60
    assert [made.reserve(1, 1).wait_s for _ in range(2)] == [0.0, 0.5]


def test_tokens_are_spaced_evenly_and_corrected_by_what_was_used() -> None:
    made = meter(tokens_per_minute=6000)
    assert [made.reserve(150, 50).wait_s for _ in range(2)] == pytest.approx([0.0, 2.0])
    made.settle((150, 50), 100, 0, 0)
    assert made.reserve(150, 50).wait_s == pytest.approx(3.0)


def test_a_pause_holds_all() -> None:
    made = meter()
    made.pause(7.0)
    assert made.reserve(1, 1).wait_s == 7.0


def test_the_budget_is_reserved_then_settled() -> None:
    """A request may cost 1,000 x 1 + 500 x 4 = 3,000 millionths."""
    made = meter(price_per_million=PRICE, max_spend=0.007, spent=0.0005)
    assert made.reserve(1000, 500).granted and made.reserve(1000, 500).granted
    waiting = made.reserve(1000, 500)
    assert not waiting.granted and waiting.stop is None and waiting.wait_s > 0
    assert made.settle((1000, 500), 800, 400, 100) == pytest.approx(0.0005 + 0.001)
    assert made.reserve(1000, 500).stop is None
    assert made.settle((1000, 500), 1000, 0, 500) == pytest.approx(0.0045)
    stop = made.reserve(1000, 500).stop
    assert stop == (
        "the budget is used up: 0.0045 of engine.max_spend 0.007 is spent, and the next request may cost 0.003. "
        "Raise engine.max_spend to go on."
    )


def test_what_was_reserved_for_a_dead_worker_is_given_back() -> None:
    clock = Clock()
    made = meter(clock, price_per_million=PRICE, max_spend=0.004)
    assert made.reserve(1000, 500).granted
    assert not made.reserve(1000, 500).granted
    clock.now += 16
    assert made.reserve(1000, 500).granted and made.reserved == pytest.approx(0.003)


def test_usage_is_read_from_the_parts_of_all_stages(tmp_path: Path) -> None:
    row = dict.fromkeys(ANSWER.names, "x") | {"sample": 0, "logprobs": None, "tries": 1, "reason": None}
    tokens = [(100, 40, 10), (200, 0, 20), (900, None, 90)]
    for stage, (prompt, cached, output) in zip(("2-rationales", "7-judgements", "2-rationales"), tokens, strict=True):
        used = {"prompt_tokens": prompt, "cached_tokens": cached, "output_tokens": output}
        table = pa.Table.from_pylist([row | used], ANSWER)
        write_table(tmp_path / stage / "answers" / f"w-{prompt}.parquet", table)
    write_table(tmp_path / "7-judgements" / "answers" / "old.parquet", pa.table({"key": ["x"], "output_tokens": [7]}))
    used = usage_of(tmp_path.iterdir())
    assert used == {"prompt_tokens": 300, "cached_tokens": 40, "output_tokens": 30}
    engine = meter(price_per_million=PRICE).engine
    assert spent_in(engine, tmp_path) == pytest.approx((260 * 1 + 40 * 0.5 + 30 * 4) / 1e6)
    figures = usage_figures(engine, tmp_path / "7-judgements")
    assert figures == {"prompt_tokens": 200, "cached_tokens": 0, "output_tokens": 20, "cost": pytest.approx(0.00028)}
    assert usage_said(figures | {"cost": 1234.5}) == (
        "200 tokens of prompts (0 from the host's cache) and 20 of answers for 1,234.50"
    )
    assert usage_figures(ScriptedEngine(), tmp_path) == {}


def test_answers_of_offline_batches_count_at_the_discount(tmp_path: Path) -> None:
    """100 tokens of a prompt, 40 of them cached, and 10 of an answer cost 120 millionths, in a batch a quarter less."""
    row = dict.fromkeys(ANSWER.names, "x") | {"sample": 0, "logprobs": None, "tries": 1, "reason": None}
    row |= {"prompt_tokens": 100, "cached_tokens": 40, "output_tokens": 10}
    for part in ("w-000000", f"{OF_BATCH}1-000000"):
        write_table(tmp_path / "7-judgements" / "answers" / f"{part}.parquet", pa.Table.from_pylist([row], ANSWER))
    engine = meter(price_per_million=PRICE.model_copy(update={"batch_discount": 0.25})).engine
    assert spent_in(engine, tmp_path) == pytest.approx((120 + 90) / 1e6)
    assert usage_figures(engine, tmp_path / "7-judgements")["cost"] == pytest.approx((120 + 90) / 1e6)
