"""The engine behind an address: asks a server that speaks OpenAI's API, and waits out what passes by itself."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

from cluster.base.errors import UserError
from mpcot.asking.address.chat_requests import estimated_tokens, most_output_tokens, read_reply, request_body
from mpcot.asking.address.http_errors import Trouble, sort_error, wrong_key
from mpcot.asking.address.meter import Grant
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.asking.engines.engine import Ask, Reply, StageStopped
from mpcot.asking.failure_reasons import CUT, ENGINE_ERROR, PROMPT_TOO_LONG, REFUSED
from mpcot.asking.prompts import Message
from mpcot.config import AnswerSettings
from mpcot.schemes.scheme import Scheme

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
MOST_FAULTS = 5  # of the server at one request, while it answers others
MOST_BAD = 3  # requests that it calls wrong before it has answered any


class AnyMeter(Protocol):
    """Grants requests and sums what they cost; see `Meter`."""

    async def reserve(self, prompt_tokens: int, output_tokens: int) -> Grant: ...

    async def settle(self, reserved: tuple[int, int], prompt: int, cached: int, output: int) -> float: ...

    async def pause(self, seconds: float) -> None: ...


def client_arguments(engine: OpenAiEngine, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the arguments of the client, with the key and headers that the environment holds.

    Raises:
        UserError: a variable is not set.
    """
    from openai import Omit

    # The client would send what it finds in variables that the config does not name.
    nothing_else = {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}
    named = {"api_key_env": engine.api_key_env} | {f"headers_env.{k}": v for k, v in engine.headers_env.items()}
    for field, variable in named.items():
        if variable is not None and not environment.get(variable):
            raise UserError(
                f"engine.{field}: the variable {variable} is not set. Set it where broadfast runs, and on every "
                "node of a cluster that asks."
            )
    return {
        "base_url": engine.base_url,
        "api_key": environment[engine.api_key_env] if engine.api_key_env else "none",
        "default_headers": nothing_else
        | {name: environment[variable] for name, variable in engine.headers_env.items()},
        "timeout": engine.timeout_s,
        "max_retries": 0,
    }


def check_address(engine: OpenAiEngine) -> None:
    """Ask the server for its models before a run.

    Raises:
        UserError: a variable is not set, nobody answers, the key is wrong, or the model is not there.
    """
    import openai

    try:
        with openai.OpenAI(**client_arguments(engine)) as client:
            served = [model.id for model in client.models.list()]
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise UserError(wrong_key(engine)) from error
    except openai.APIStatusError:
        return  # a server need not list its models: the first request will tell
    except (openai.APIError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        why = error.__cause__ or error
        raise UserError(
            f"engine.base_url: no server answers at {engine.base_url} ({type(why).__name__}: {why}). Check the address."
        ) from error
    if served and engine.model not in served:
        shown = ", ".join(sorted(served)[:8]) + (" and others" if len(served) > 8 else "")
        raise UserError(f"engine.model: {engine.base_url} does not serve {engine.model!r}, but {shown}")


class BehindAddress:
    """Asks a server. What passes by itself (limits of its rate, faults, lost connections) is no try and no failure."""

    never_hangs = True

    def __init__(self, engine: OpenAiEngine, scheme: Scheme, ask: AnswerSettings, meter: AnyMeter) -> None:
        self.engine, self.scheme, self.ask, self.meter = engine, scheme, ask, meter
        self.seats = asyncio.Semaphore(engine.max_in_flight // engine.replicas.max)
        self.spent: float | None = None
        self.client: Any = None
        self.logprobs = True
        self.stopped: str | None = None
        self.answered = self.bad = 0
        self.heard = time.monotonic()  # when the server last said anything but that it is at fault
        self.silent_from: float | None = None  # when it first was at fault since then

    async def reply(self, ask: Ask) -> Reply:
        async with self.seats:
            chat, chars = ask.chat, self.ask.description_chars
            while True:
                reply = await self._until_answered(chat, ask.tried)
                if ask.shorter is None or not (reply.error or "").startswith(PROMPT_TOO_LONG):
                    return reply
                if not chars:
                    return Reply("", None, 0, 0, f"{reply.error}{CUT}")
                chars //= 2  # how many tokens are too many is known to the server alone
                chat = ask.shorter(chars)

    def kill(self) -> None:
        """The server has its processes elsewhere."""

    async def _until_answered(self, chat: list[Message], tried: int) -> Reply:
        """Ask until there is an answer, or an error that does not pass."""
        waits = faults = 0
        while True:
            reserved = await self._leave(chat)
            began, logprobs = time.monotonic(), self.logprobs
            found = await self._once(chat, tried, reserved)
            if isinstance(found, Reply):
                return found
            if found.kind == "no logprobs" and logprobs:
                self.logprobs = False
                continue
            if found.kind not in ("wait", "fault"):
                return self._failed(found)
            if found.kind == "fault":
                faults += self.heard > began  # a server that answers nobody is no fault of this request
                if faults >= MOST_FAULTS:
                    return Reply("", None, 0, 0, f"{ENGINE_ERROR}: {found.said}"[:200])
                self._check_silence(found.said)
            await self._back_off(found, waits)
            waits += 1

    async def _leave(self, chat: list[Message]) -> tuple[int, int]:
        """Wait until the meter grants a request. Return the tokens that are reserved for it.

        Raises:
            StageStopped: the budget is used up, or the stage stops for another reason.
        """
        tokens = estimated_tokens(*(message["content"] for message in chat)), most_output_tokens(self.engine, self.ask)
        while True:
            if self.stopped is not None:
                raise StageStopped(self.stopped)
            grant = await self.meter.reserve(*tokens)
            if grant.stop is not None:
                self._stop(grant.stop)
            await asyncio.sleep(grant.wait_s)
            if grant.granted:
                return tokens

    async def _once(self, chat: list[Message], tried: int, reserved: tuple[int, int]) -> Reply | Trouble:
        """Send a request, and settle what was reserved for it."""
        import openai

        used = (0, 0, 0)
        try:
            found = read_reply(await self._send(chat, tried), chat, self.scheme, self.ask.asks_confidence)
            used = (found.prompt_tokens, found.cached_tokens, found.output_tokens)
            self.answered += 1
            self._hear()
            return found
        except openai.APIError as error:
            trouble = sort_error(error, self.engine)
            if trouble.kind != "fault":
                self._hear()
            return trouble
        except (json.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
            return Trouble("fault", f"its answer is not one of OpenAI's API ({type(error).__name__})")
        finally:
            spent = await self.meter.settle(reserved, *used)
            self.spent = spent if self.engine.price_per_million else None

    async def _send(self, chat: list[Message], tried: int) -> Any:
        import openai

        if self.client is None:
            try:
                self.client = openai.AsyncOpenAI(**client_arguments(self.engine))
            except UserError as error:
                self._stop(str(error))
        body = request_body(self.engine, self.scheme, self.ask, chat, tried)
        if not self.logprobs:
            body = {name: value for name, value in body.items() if "logprobs" not in name}
        asked = {"model": body.pop("model"), "messages": body.pop("messages")}
        raw = await self.client.chat.completions.with_raw_response.create(**asked, extra_body=body)
        return json.loads(raw.text)  # plain data: a model of each of its many log-probabilities would take long

    def _failed(self, found: Trouble) -> Reply:
        if found.kind == "stop":
            self._stop(found.said)
        if found.kind == "too long":
            return Reply("", None, 0, 0, f"{PROMPT_TOO_LONG}: {found.said}"[:200])
        if found.kind == "refused":
            return Reply("", None, 0, 0, f"{REFUSED}: {found.said}"[:200])
        self.bad += 1
        if not self.answered and self.bad >= MOST_BAD:
            where = self.engine.base_url
            self._stop(f"{where} takes no request ({found.said}). Adapt engine.extra_body or the stage's settings.")
        return Reply("", None, 0, 0, f"{ENGINE_ERROR}: {found.said}"[:200])

    def _hear(self) -> None:
        self.heard, self.silent_from = time.monotonic(), None

    def _check_silence(self, said: str) -> None:
        silent_s, now = self.engine.replicas.stalled_s, time.monotonic()
        self.silent_from = self.silent_from or now
        if now - self.silent_from > silent_s:
            self._stop(
                f"engine.base_url: {self.engine.base_url} has answered nothing for {silent_s:g} s "
                f"(engine.replicas.stalled_s): {said}. See to the server."
            )

    async def _back_off(self, found: Trouble, waits: int) -> None:
        if found.wait_s is not None:
            await self.meter.pause(found.wait_s)
            await asyncio.sleep(found.wait_s)
            self._hear()  # it has asked for the silence
            return
        await asyncio.sleep(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**waits) * random.uniform(0.5, 1.0))

    def _stop(self, said: str) -> NoReturn:
        """Ask nothing more.

        Raises:
            StageStopped: always.
        """
        self.stopped = said
        raise StageStopped(said)
