"""Sorts the errors of a server that speaks OpenAI's API by what is to be done about them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Literal

from mpcot.asking.engines.config import OpenAiEngine

if TYPE_CHECKING:
    from openai import APIError, APIStatusError

Kind = Literal["wait", "fault", "stop", "too long", "refused", "no logprobs", "bad"]
SPENT_CODES = {"insufficient_quota", "billing_hard_limit_reached", "insufficient_balance"}
LONG_CODES = {"context_length_exceeded", "string_above_max_length"}
LONG_WORDS = ("context length", "context window", "maximum context", "prompt is too long", "exceeds the context")
FORM_WORDS = ("response_format", "json_schema", "structured_output", "guided", "grammar")
REFUSED_CODES = {"content_filter", "content_policy_violation"}


@dataclass(frozen=True)
class Trouble:
    """What to do about an error.

    Attributes:
        kind: wait and ask again; the same, since the server is at fault; stop the stage; or what is wrong with this
            one request.
        said: what the server said or what the user can do.
        wait_s: how long the server asks to be left alone, if it does.
    """

    kind: Kind
    said: str
    wait_s: float | None = None


def sort_error(error: APIError, engine: OpenAiEngine) -> Trouble:
    """Return what is to be done about an error of the client."""
    from openai import APIStatusError

    body = error.body if isinstance(error.body, dict) else {}
    said = _without_secrets(" ".join(str(body.get("message") or error.message).split()), engine)[:300].rstrip(".")
    if not isinstance(error, APIStatusError):
        return Trouble("fault", f"{said} ({type(error.__cause__ or error).__name__})")
    status, code = error.status_code, str(error.code or "")
    if why := _final(status, {code, str(error.type or "")}, said, engine):
        return Trouble("stop", why)
    if status == 429:
        return Trouble("wait", said, retry_after(error))
    if status in (408, 409) or status >= 500:
        return Trouble("fault", f"HTTP {status}: {said}", retry_after(error))
    return _bad_request(engine, code, said, str(error.param or ""))


def _without_secrets(said: str, engine: OpenAiEngine) -> str:
    """Return a message without the key and the headers, which a server may repeat."""
    for variable in (engine.api_key_env, *engine.headers_env.values()):
        if variable and (secret := os.environ.get(variable)):
            said = said.replace(secret, f"${variable}")
    return said


def _final(status: int, codes: set[str], said: str, engine: OpenAiEngine) -> str | None:
    """Return the message about an error that all requests would meet."""
    if status == 402 or codes & SPENT_CODES:
        return f"{engine.base_url} says that its quota is spent ({said}). Top it up."
    if status in (401, 403):
        return f"{wrong_key(engine)} The server says: {said}."
    if status == 404:
        return f"engine.model: {engine.base_url} does not serve {engine.model!r}. The server says: {said}."
    return None


def _bad_request(engine: OpenAiEngine, code: str, said: str, field: str) -> Trouble:
    """Sort what is wrong with a request. Servers name few of these by a code, so their words must do."""
    words = f"{field} {said}".lower()
    if code in REFUSED_CODES:
        return Trouble("refused", said)
    if code in LONG_CODES or any(phrase in words for phrase in LONG_WORDS):
        return Trouble("too long", said)
    if "logprobs" in words:
        return Trouble("no logprobs", said)
    if engine.form != "text" and any(word in words for word in FORM_WORDS):
        others = "'json_schema' or 'text'" if engine.form == "grammar" else "'text'"
        why = f"engine.form {engine.form!r}: {engine.base_url} cannot enforce it ({said}). Set engine.form to {others}."
        return Trouble("stop", why)
    return Trouble("bad", said)


def wrong_key(engine: OpenAiEngine) -> str:
    """Return the message about a key that the server does not take."""
    if engine.api_key_env is None:
        return f"engine.api_key_env: {engine.base_url} wants a key. Name the variable that holds it."
    return f"engine.api_key_env: {engine.base_url} does not take the key in ${engine.api_key_env}. Correct the key."


def retry_after(error: APIStatusError) -> float | None:
    """Return the seconds in the header Retry-After, which holds seconds or a date."""
    text = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
