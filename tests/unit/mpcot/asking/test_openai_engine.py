"""The engine behind an address, against a scripted server: what passes, what stops the stage, what costs an answer."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from cluster.base.errors import UserError
from mpcot.asking.address.meter import Meter
from mpcot.asking.engines import openai_engine
from mpcot.asking.engines.config import OpenAiEngine, Price
from mpcot.asking.engines.engine import Ask, Reply, StageStopped
from mpcot.asking.engines.openai_engine import BehindAddress, check_address
from mpcot.config import AnswerSettings, JudgeSettings
from mpcot.schemes.scheme import load_scheme
from tests.helpers.free_port import free_port
from tests.helpers.scripted_server import (
    ANSWER,
    MODEL,
    NearMeter,
    Said,
    ScriptedServer,
    completion,
    refusal,
    scripted_server,
)

ESCI = load_scheme("esci")
CHAT = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "Query: drill"}]
PRICE = Price(input=10.0, cached_input=1.0, output=100.0)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_engine, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(openai_engine, "LONGEST_WAIT_S", 0.02)


def settings(server: ScriptedServer, **changed: Any) -> OpenAiEngine:
    return OpenAiEngine(**{"base_url": server.url, "model": MODEL} | changed)


def behind(engine: OpenAiEngine, ask: AnswerSettings | None = None) -> BehindAddress:
    return BehindAddress(engine, ESCI, ask or AnswerSettings(), NearMeter(Meter(engine)))


def reply(server: ScriptedServer, *script: Said, ask: AnswerSettings | None = None, **changed: Any) -> Reply:
    server.script = list(script)
    return asyncio.run(behind(settings(server, **changed), ask).reply(Ask("k", CHAT, 1)))


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


@pytest.mark.parametrize(
    "passing",
    [
        refusal(429, "Rate limit reached", "rate_limit_exceeded"),
        refusal(429, "Rate limit reached", Retry_After="0.05"),
        refusal(500, "internal"),
        refusal(503, "starting"),
        Said(body=completion(), cut=True),
        Said(raw=b'{"choices": [{"mess'),
        Said(body={"object": "something else"}),
        Said(body=completion(), delay_s=0.6),
    ],
)
def test_what_passes_is_waited_out(server: ScriptedServer, passing: Said) -> None:
    assert reply(server, *[passing] * 3, timeout_s=0.3).text == ANSWER
    assert len(server.asked) == 4


@pytest.mark.parametrize("soon", ["0.3", None])
def test_retry_after_is_honoured(server: ScriptedServer, soon: str | None) -> None:
    text = soon or format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    began = time.monotonic()
    assert reply(server, refusal(429, "slow down", Retry_After=text)).error is None
    assert time.monotonic() - began >= (0.3 if soon else 0.9)


@pytest.mark.parametrize(
    ("final", "said"),
    [
        (refusal(401, "Incorrect API key provided"), r"engine\.api_key_env: .* wants a key\. Name the variable"),
        (refusal(404, "The model `x` does not exist"), "engine.model: .* does not serve 'scripted-1'"),
        (refusal(429, "You exceeded your quota", "insufficient_quota"), "its quota is spent .* Top it up"),
        (refusal(402, "Insufficient balance"), "its quota is spent"),
        (refusal(400, "Unknown field: structured_outputs"), r"engine\.form 'grammar'.*'json_schema' or 'text'"),
    ],
)
def test_what_all_requests_would_meet_stops_the_stage(server: ScriptedServer, final: Said, said: str) -> None:
    with pytest.raises(StageStopped, match=said):
        reply(server, final)
    assert len(server.asked) == 1


def test_a_key_that_the_server_repeats_is_not_shown(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "secret-1")
    with pytest.raises(StageStopped, match=r"does not take the key in \$A_KEY.*says: bad key \$A_KEY\.") as said:
        reply(server, refusal(401, "bad key secret-1"), api_key_env="A_KEY")
    assert "secret-1" not in str(said.value)


def test_a_schema_that_cannot_be_enforced_leaves_text(server: ScriptedServer) -> None:
    with pytest.raises(StageStopped, match=r"Set engine\.form to 'text'"):
        reply(server, refusal(400, "response_format json_schema is not supported"), form="json_schema")


def test_once_stopped_nothing_more_is_asked(server: ScriptedServer) -> None:
    server.script = [refusal(402, "no money")]

    async def ask() -> None:
        engine = behind(settings(server))
        for _ in range(3):
            with pytest.raises(StageStopped, match="no money"):
                await engine.reply(Ask("k", CHAT, 1))

    asyncio.run(ask())
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (Said(body=completion(None, message={"content": None, "refusal": "I can't help"})), "I can't help"),
        (Said(body=completion("", finish_reason="content_filter")), "content filter"),
        (refusal(400, "The response was filtered", "content_filter"), "The response was filtered"),
    ],
)
def test_a_refusal_is_a_reason_of_its_own(server: ScriptedServer, refused: Said, reason: str) -> None:
    assert reply(server, refused).error == f"refused by the model: {reason}"


def test_a_prompt_that_is_too_long(server: ScriptedServer) -> None:
    long = "This model's maximum context length is 2048 tokens. However, your prompt contains 3000 input tokens."
    found = reply(server, refusal(400, long, 400))
    assert found.error is not None and found.error.startswith("prompt too long: This model's maximum")


def test_a_description_is_cut_until_it_fits(server: ScriptedServer) -> None:
    def answer(body: dict[str, Any]) -> Said:
        fits = len(body["messages"][0]["content"]) <= 30
        return Said(body=completion()) if fits else refusal(400, "too long", "context_length_exceeded")

    def shorter(chars: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": "d" * chars}]

    server.answer = answer
    ask = AnswerSettings(description_chars=200, when_too_long="cut")
    engine = behind(settings(server), ask)
    assert asyncio.run(engine.reply(Ask("k", shorter(200), 1, None, shorter))).text == ANSWER
    assert [len(body["messages"][0]["content"]) for body in server.asked] == [200, 100, 50, 25]
    server.answer = lambda body: refusal(400, "too long", "context_length_exceeded")
    found = asyncio.run(behind(settings(server), ask).reply(Ask("k", shorter(200), 1, None, shorter)))
    assert found.error == "prompt too long: too long, description cut"


def test_a_server_without_logprobs_is_asked_without_them(server: ScriptedServer) -> None:
    assert reply(server, refusal(400, "logprobs is not supported with this model")).text == ANSWER
    assert "logprobs" in server.asked[0] and not server.asked[1].keys() & {"logprobs", "top_logprobs"}


def test_requests_that_went_out_before_that_was_known_are_asked_again(server: ScriptedServer) -> None:
    def answer(body: dict[str, Any]) -> Said:
        time.sleep(0.05)
        return refusal(400, "logprobs is not supported") if "logprobs" in body else Said(body=completion())

    async def ask() -> list[Reply]:
        engine = behind(settings(server))
        return list(await asyncio.gather(*(engine.reply(Ask(str(n), CHAT, 1)) for n in range(8))))

    server.answer = answer
    assert [found.error for found in asyncio.run(ask())] == [None] * 8


def test_reasoning_content_is_no_part_of_the_answer(server: ScriptedServer) -> None:
    message = {"content": ANSWER, "reasoning_content": "Verdict: I"}
    assert reply(server, Said(body=completion(message=message))).text == ANSWER


def test_an_answer_that_met_max_tokens(server: ScriptedServer) -> None:
    assert (reply(server, Said(body=completion("half", finish_reason="length"))).error or "").startswith("too long")


def test_a_server_that_takes_no_request_stops_the_stage(server: ScriptedServer) -> None:
    server.answer = lambda body: refusal(400, "temperature must be 1")

    async def ask() -> list[str]:
        engine = behind(settings(server))
        said = [str((await engine.reply(Ask("k", CHAT, 1))).error) for _ in range(2)]
        with pytest.raises(StageStopped, match=r"takes no request \(temperature must be 1\)"):
            await engine.reply(Ask("k", CHAT, 1))
        return said

    assert asyncio.run(ask()) == ["engine error: temperature must be 1"] * 2


def test_one_request_at_which_the_server_always_fails(server: ScriptedServer) -> None:
    """The others are answered meanwhile, so the fault is in the request."""
    server.answer = lambda body: (
        refusal(500, "broken") if "poison" in str(body["messages"]) else Said(body=completion(), delay_s=0.01)
    )

    async def ask() -> list[Reply]:
        engine = behind(settings(server))

        async def others() -> Reply:
            for _ in range(100):
                last = await engine.reply(Ask("k", CHAT, 1))
            return last

        poison = [{"role": "user", "content": "poison"}]
        return list(await asyncio.gather(engine.reply(Ask("p", poison, 1)), others()))

    found, other = asyncio.run(ask())
    assert found.error == "engine error: HTTP 500: broken" and other.error is None


def test_a_server_that_is_gone_stops_the_stage_in_the_end() -> None:
    engine = OpenAiEngine(base_url=f"http://127.0.0.1:{free_port()}/v1", model=MODEL, replicas={"stalled_s": 0.05})
    with pytest.raises(StageStopped, match=r"engine\.base_url: .* has answered nothing for 0\.05 s"):
        asyncio.run(behind(engine).reply(Ask("k", CHAT, 1)))


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
        engine = behind(settings(server, max_in_flight=3))
        await asyncio.gather(*(engine.reply(Ask(str(n), CHAT, 1)) for n in range(12)))

    server.answer = answer
    asyncio.run(ask())
    assert len(server.asked) == 12 and most <= 3


def test_the_budget_is_not_passed(server: ScriptedServer) -> None:
    """An answer costs 60 x 10 + 40 x 1 + 20 x 100 = 2,640 millionths, and at most about 13,300 before it comes."""
    engine = settings(server, price_per_million=PRICE, max_spend=0.03)
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


class TestBeforeTheRun:
    def test_all_is_well(self, server: ScriptedServer) -> None:
        check_address(settings(server))

    def test_a_server_that_lists_no_models_is_believed(self, server: ScriptedServer) -> None:
        server.models = None
        check_address(settings(server))

    def test_a_model_that_is_not_served(self, server: ScriptedServer) -> None:
        server.models = ["one", "two"]
        with pytest.raises(UserError, match=r"engine\.model: http.* does not serve 'scripted-1', but one, two"):
            check_address(settings(server))

    def test_a_wrong_key_is_not_shown(self, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("A_KEY", "secret-1")
        server.keys = {"right"}
        with pytest.raises(UserError, match=r"does not take the key in \$A_KEY") as said:
            check_address(settings(server, api_key_env="A_KEY"))
        assert "secret-1" not in str(said.value)

    def test_a_variable_that_is_not_set(self, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("A_KEY", raising=False)
        with pytest.raises(UserError, match=r"engine\.api_key_env: the variable A_KEY is not set"):
            check_address(settings(server, api_key_env="A_KEY"))
        with pytest.raises(UserError, match=r"engine\.headers_env\.X: the variable A_KEY is not set"):
            check_address(settings(server, headers_env={"X": "A_KEY"}))

    def test_nobody_answers(self) -> None:
        engine = OpenAiEngine(base_url=f"http://127.0.0.1:{free_port()}/v1", model=MODEL)
        with pytest.raises(UserError, match=r"engine\.base_url: no server answers at http://127"):
            check_address(engine)

    def test_something_else_answers(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            engine = OpenAiEngine(
                base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", model=MODEL, timeout_s=0.2
            )
            with pytest.raises(UserError, match="no server answers"):
                check_address(engine)
