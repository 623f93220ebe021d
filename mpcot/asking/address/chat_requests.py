"""Requests and replies of OpenAI's chat API as plain data, the same for requests at once and for batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpcot.asking.address.answer_forms import confidence_is_last, house_form, label_logprobs, verdict_of
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.asking.engines.engine import Reply
from mpcot.asking.failure_reasons import REFUSED
from mpcot.asking.prompts import Message, answer_regex
from mpcot.config import AnswerSettings
from mpcot.schemes.scheme import Scheme

MOST_ALTERNATIVES = 20  # more are refused by OpenAI
BYTES_PER_TOKEN = 3  # a careful estimate: English has four and a half, Japanese about three
TEMPLATE_TOKENS = 16


def request_body(
    engine: OpenAiEngine, scheme: Scheme, ask: AnswerSettings, chat: list[Message], tried: int = 0
) -> dict[str, Any]:
    """Return the body of a request after `tried` tries."""
    body: dict[str, Any] = {"model": engine.model, "messages": chat, "temperature": ask.temperature_after(tried)}
    body |= {"logprobs": True, "top_logprobs": min(MOST_ALTERNATIVES, 2 * len(scheme.codes))}
    if ask.top_p < 1:
        body["top_p"] = ask.top_p
    if "max_completion_tokens" not in engine.extra_body:
        body["max_tokens"] = ask.max_tokens
    if engine.form == "grammar":
        regex = answer_regex(scheme, ask.min_chars, ask.max_chars, ask.asks_confidence)
        body["structured_outputs"] = {"regex": regex}
    if engine.form == "json_schema":
        schema = {"name": "judgement", "strict": True, "schema": answer_schema(scheme, ask.asks_confidence)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body | engine.extra_body


def answer_schema(scheme: Scheme, confidence: bool = False) -> dict[str, Any]:
    """Return the JSON schema of an answer: reasoning first, so that the verdict follows from it."""
    fields: dict[str, Any] = {"rationale": {"type": "string"}}
    fields |= {"confidence": {"type": "integer"}} if confidence else {}  # not every server takes bounds
    fields |= {"verdict": {"type": "string", "enum": list(scheme.codes)}}
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def read_reply(completion: Mapping[str, Any], chat: list[Message], scheme: Scheme, confidence: bool = False) -> Reply:
    """Return the reply in a completion. Tokens are estimated where the server does not count them.

    Args:
        confidence: whether the answer was to say how sure it is.

    Raises:
        KeyError, IndexError, TypeError: it is no completion.
    """
    choice = completion["choices"][0]
    said, finish = choice["message"], choice.get("finish_reason")
    text = house_form(said.get("content") or "", scheme, confidence)
    usage = completion.get("usage") or {}
    prompt = usage.get("prompt_tokens") or estimated_tokens(*(message["content"] for message in chat))
    output = usage.get("completion_tokens") or estimated_tokens(text)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    error = None
    if said.get("refusal") or finish == "content_filter":
        error = f"{REFUSED}: {said.get('refusal') or 'content filter'}"[:200]
    elif finish == "length":
        error = "too long: the answer met max_tokens"
    told = (choice.get("logprobs") or {}).get("content")
    if confidence and confidence_is_last(said.get("content") or ""):
        told = None  # the digits of the confidence could be taken for labels
    return Reply(text, label_logprobs(told, verdict_of(text), scheme), prompt, output, error, cached, True)


def estimated_tokens(*texts: str) -> int:
    """Return about how many tokens the messages have, rather too many than too few."""
    return sum(len(text.encode()) // BYTES_PER_TOKEN + TEMPLATE_TOKENS for text in texts)


def most_output_tokens(engine: OpenAiEngine, ask: AnswerSettings) -> int:
    """Return the most tokens that an answer may have."""
    return int(engine.extra_body.get("max_completion_tokens", ask.max_tokens))
