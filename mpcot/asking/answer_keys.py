"""The key of an answer: a digest of all that the answer depends on, so that a rerun knows what it already has."""

from __future__ import annotations

import hashlib

from cluster.base.stage_folder import digest, result_settings
from mpcot.asking.prompts import answer_regex
from mpcot.config import AnswerSettings, Engine
from mpcot.schemes.scheme import Scheme

# Part of every key. Raise it only if equal settings and prompts lead to other answers: all of them are then asked, and
# paid for, again. Version 1 is spelt as keys were first made, so that answers from then still count.
KEY_VERSION: int | list[str] = [
    "key", "pair_id", "perspective", "sample", "rationale", "verdict", "logprobs", "prompt_tokens", "cached_tokens",
    "output_tokens", "tries", "reason",
]  # fmt: skip
# Settings on which no answer depends, or which show in the prompt, which has a digest of its own.
NOT_SAMPLING = {
    "splits", "pairs_per_split", "max_failed_share", "retries", "samples", "few_shot", "description_chars", "guide",
    "words", "filters", "hinted_retry", "when_too_long", "retry_temperature", "engine", "fit",
    "confidence", "budget_pairs",
}  # fmt: skip


def sampling_digest(model_digest: str, engine: Engine, scheme: Scheme, ask: AnswerSettings, seed: int) -> str:
    """Return a digest of what an answer depends on beside its prompt: the model and how it is sampled."""
    kept = {name: value for name, value in result_settings(ask).items() if name not in NOT_SAMPLING}
    if not ask.temperature:
        kept["retry_temperature"] = ask.retry_temperature
    regex = answer_regex(scheme, ask.min_chars, ask.max_chars, ask.asks_confidence)
    arguments = result_settings(engine)
    if arguments.get("thinking") == "off":
        del arguments["thinking"], arguments["thinking_tokens"]
    if ask.when_too_long == "reject":  # the limit makes no difference to a prompt that fits
        arguments.pop("max_model_len", None)
    return digest([KEY_VERSION, model_digest, kept, regex, engine.kind, arguments, seed])


def answer_key(*texts: str) -> str:
    """Return a digest of the texts, 32 hex digits. It includes their lengths, so that "ab", "c" is not "a", "bc"."""
    joined = "".join([f"{len(text)}:{text}" for text in texts])
    return hashlib.sha256(joined.encode()).hexdigest()[:32]
