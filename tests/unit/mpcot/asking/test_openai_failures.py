"""The engine behind an address, where it is not answered: what passes, what stops the stage, what costs an answer."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from cluster.base.free_port import free_port
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.asking.engines.engine import Ask, Reply, StageStopped
from tests.helpers.behind_address import CHAT, behind, reply
from tests.helpers.scripted_server import ANSWER, MODEL, Said, ScriptedServer, completion, engine_at, refusal

pytestmark = pytest.mark.usefixtures("short_waits")


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
        engine = behind(engine_at(server))
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


def test_an_answer_that_met_max_tokens(server: ScriptedServer) -> None:
    assert (reply(server, Said(body=completion("half", finish_reason="length"))).error or "").startswith("too long")


def test_a_server_that_takes_no_request_stops_the_stage(server: ScriptedServer) -> None:
    server.answer = lambda body: refusal(400, "temperature must be 1")

    async def ask() -> list[str]:
        engine = behind(engine_at(server))
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
        engine = behind(engine_at(server))

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
