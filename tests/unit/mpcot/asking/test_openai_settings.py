"""Settings of an engine behind an address: what is refused, and what an answer's key depends on."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mpcot.asking.answer_keys import sampling_digest
from mpcot.asking.engines.config import OpenAiEngine, Price
from mpcot.asking.plan import teacher_fingerprint
from mpcot.config import AnswerSettings
from mpcot.schemes.scheme import load_scheme

GIVEN: dict[str, Any] = {"base_url": "http://host:8000/v1", "model": "big"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_spend": 5}, "max_spend 5 has no effect without prices: set price_per_million"),
        ({"base_url": "host:8000"}, "base_url"),
        ({"api_key_env": "sk-123"}, "api_key_env"),
        ({"headers_env": {"X-Key": "a secret"}}, r"headers_env\.X-Key: give the name of a variable"),
        ({"extra_body": {"temperature": 1}}, r"extra_body\.temperature is set by temperature"),
        ({"replicas": {"gpus": 1}}, r"replicas\.gpus 1 would stand idle"),
        ({"max_in_flight": 1, "replicas": {"max": 2}}, r"max_in_flight 1 is below replicas\.max 2"),
        ({"price_per_million": {"input": 1.0}}, r"price_per_million\.output"),
    ],
)
def test_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        OpenAiEngine(**GIVEN | changed)


def digest_of(**changed: Any) -> str:
    engine = OpenAiEngine(**GIVEN | changed)
    return sampling_digest(teacher_fingerprint(engine, ""), engine, load_scheme("esci"), AnswerSettings(), 1)


def test_a_changed_address_limit_or_price_asks_nothing_again() -> None:
    price = Price(input=1, output=2)
    changed = [
        {"base_url": "https://other/v1"}, {"api_key_env": "KEY"}, {"headers_env": {"X": "Y"}}, {"max_in_flight": 3},
        {"requests_per_minute": 3}, {"tokens_per_minute": 3}, {"timeout_s": 3}, {"price_per_million": price},
        {"price_per_million": price, "max_spend": 1}, {"replicas": {"max": 2}},
    ]  # fmt: skip
    assert {digest_of(**one) for one in changed} == {digest_of()}


def test_another_model_snapshot_or_form_asks_again() -> None:
    changed = [{"model": "b"}, {"snapshot": "2"}, {"form": "text"}, {"extra_body": {"reasoning_effort": "low"}}, {}]
    assert len({digest_of(**one) for one in changed}) == len(changed)


def test_cached_tokens_cost_what_fresh_ones_do_unless_told() -> None:
    assert Price(input=2, output=10).of(1e6, 5e5, 1e5) == pytest.approx(3.0)
    assert Price(input=2, cached_input=1, output=10).of(1e6, 5e5, 1e5) == pytest.approx(2.5)
    assert Price(input=2, output=10).of(1e6, 5e5, 1e5, batch=True) == pytest.approx(1.5)
    assert Price(input=2, output=10, batch_discount=0).of(1e6, 5e5, 1e5, batch=True) == pytest.approx(3.0)
