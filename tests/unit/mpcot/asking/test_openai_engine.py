"""The engine behind an address, against a scripted server: what it asks and what an answer brings."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from mpcot.asking.address.meter import Meter
from mpcot.asking.engines.config import Price
from mpcot.asking.engines.engine import Ask, Reply, StageStopped
from mpcot.asking.engines.openai_engine import BehindAddress
from mpcot.config import AnswerSettings, JudgeSettings
from tests.helpers.behind_address import CHAT, ESCI, behind, reply
from tests.helpers.scripted_server import ANSWER, MODEL, NearMeter, Said, ScriptedServer, completion, engine_at, refusal

pytestmark = pytest.mark.usefixtures("short_waits")

PRICE = Price(input=10.0, cached_input=1.0, output=100.0)


def test_an_answer_with_its_tokens(server: ScriptedServer) -> None:
    assert reply(server) == Reply(ANSWER, None, 100, 20, None, 40, True)
    (asked,) = server.asked
    assert asked["messages"] == CHAT and asked["model"] == MODEL
    assert asked["max_tokens"] == 256 and asked["temperature"] == 0.7
    assert asked["structured_outputs"]["regex"].endswith("Verdict: (E|S|C|I)")


def test_forms_and_further_fields(server: ScriptedServer) -> None:
    more = {"max_completion_tokens": 900, "chat_template_kwargs": {"enable_thinking": False}}
    reply(server, form="json_schema", extra_body=more)
    reply(server, form="text", ask=AnswerSettings(temperature=0, top_p=0.9))
    by_schema, by_text = server.asked
    schema = by_schema["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["verdict"]["enum"] == ["E", "S", "C", "I"]
    assert "max_tokens" not in by_schema and by_schema["max_completion_tokens"] == 900
    assert by_schema["chat_template_kwargs"] == {"enable_thinking": False}
    assert not by_text.keys() & {"response_format", "structured_outputs"} and by_text["top_p"] == 0.9


def test_a_confidence_is_asked_for_and_comes_back_in_the_house_form(server: ScriptedServer) -> None:
    said = "It is a drill, as was asked.\nVerdict: E\nConfidence: 85 %"
    got = reply(server, Said(body=completion(said)), ask=JudgeSettings(confidence=True))
    assert got.text == "It is a drill, as was asked.\nConfidence: 85 %\nVerdict: E" and got.logprobs is None
    regex = server.asked[0]["structured_outputs"]["regex"]
    assert regex.endswith(r"Confidence: (100|[1-9]?[0-9])\nVerdict: (E|S|C|I)")


def test_the_key_comes_from_its_variable(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "right")
    monkeypatch.setenv("A_TEAM", "search")
    monkeypatch.setenv("OPENAI_ORG_ID", "another")
    server.keys = {"right"}
    assert reply(server, api_key_env="A_KEY", headers_env={"X-Team": "A_TEAM"}).error is None
    headers = server.asked[0]["headers"]
    assert headers["x-team"] == "search" and "another" not in headers.values()


def test_a_description_is_cut_until_it_fits(server: ScriptedServer) -> None:
    def answer(body: dict[str, Any]) -> Said:
        fits = len(body["messages"][0]["content"]) <= 30
        return Said(body=completion()) if fits else refusal(400, "too long", "context_length_exceeded")

    def shorter(chars: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": "d" * chars}]

    server.answer = answer
    ask = AnswerSettings(description_chars=200, when_too_long="cut")
    engine = behind(engine_at(server), ask)
    assert asyncio.run(engine.reply(Ask("k", shorter(200), 1, None, shorter))).text == ANSWER
    assert [len(body["messages"][0]["content"]) for body in server.asked] == [200, 100, 50, 25]
    server.answer = lambda body: refusal(400, "too long", "context_length_exceeded")
    found = asyncio.run(behind(engine_at(server), ask).reply(Ask("k", shorter(200), 1, None, shorter)))
    assert found.error == "prompt too long: too long, description cut"


def test_a_server_without_logprobs_is_asked_without_them(server: ScriptedServer) -> None:
    assert reply(server, refusal(400, "logprobs is not supported with this model")).text == ANSWER
    assert "logprobs" in server.asked[0] and not server.asked[1].keys() & {"logprobs", "top_logprobs"}


def test_requests_that_went_out_before_that_was_known_are_asked_again(server: ScriptedServer) -> None:
    def answer(body: dict[str, Any]) -> Said:
        time.sleep(0.05)
        return refusal(400, "logprobs is not supported") if "logprobs" in body else Said(body=completion())

    async def ask() -> list[Reply]:
        engine = behind(engine_at(server))
        return list(await asyncio.gather(*(engine.reply(Ask(str(n), CHAT, 1)) for n in range(8))))

    server.answer = answer
    assert [found.error for found in asyncio.run(ask())] == [None] * 8


def test_reasoning_content_is_no_part_of_the_answer(server: ScriptedServer) -> None:
    message = {"content": ANSWER, "reasoning_content": "Verdict: I"}
    assert reply(server, Said(body=completion(message=message))).text == ANSWER


def test_no_more_are_on_their_way_than_may(server: ScriptedServer) -> None:
    now = most = 0

    def answer(body: dict[str, Any]) -> Said:
        nonlocal now, most
        with server.lock:
            now, most = now + 1, max(most, now + 1)
        time.sleep(0.02)
        with server.lock:
            now -= 1
        return Said(body=completion())

    async def ask() -> None:
        engine = behind(engine_at(server, max_in_flight=3))
        await asyncio.gather(*(engine.reply(Ask(str(n), CHAT, 1)) for n in range(12)))

    server.answer = answer
    asyncio.run(ask())
    assert len(server.asked) == 12 and most <= 3


def test_the_budget_is_not_passed(server: ScriptedServer) -> None:
    """An answer costs 60 x 10 + 40 x 1 + 20 x 100 = 2,640 millionths, and at most about 13,300 before it comes."""
    engine = engine_at(server, price_per_million=PRICE, max_spend=0.03)
    meter = Meter(engine)
    made = BehindAddress(engine, ESCI, AnswerSettings(max_tokens=128), NearMeter(meter))

    async def ask() -> list[Any]:
        return await asyncio.gather(*(made.reply(Ask(str(n), CHAT, 1)) for n in range(30)), return_exceptions=True)

    found = asyncio.run(ask())
    answered = [one for one in found if isinstance(one, Reply)]
    stops = [one for one in found if isinstance(one, StageStopped)]
    assert len(answered) + len(stops) == 30 and stops
    assert meter.spent == pytest.approx(len(answered) * 0.00264) and 0.03 - 0.0134 < meter.spent <= 0.03
    assert made.spent == pytest.approx(meter.spent)
    assert "Raise engine.max_spend" in str(stops[0])
