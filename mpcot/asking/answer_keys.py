"""The key of an answer: a digest of all that decides it, so that a rerun knows what was answered before."""

from __future__ import annotations

import hashlib

from cluster.base.stage_folder import digest, result_settings
from mpcot.asking.prompts import answer_regex
from mpcot.config import AnswerSettings, Engine
from mpcot.records import ANSWER
from mpcot.schemes.scheme import Scheme

# Settings that decide which requests there are or what becomes of their answers, or that the prompt shows already.
NOT_SAMPLING = {
    "splits", "pairs_per_split", "max_failed_share", "retries", "samples", "few_shot", "description_chars", "filters",
    "hinted_retry", "when_too_long", "retry_temperature",
}  # fmt: skip


def sampling_digest(model_digest: str, engine: Engine, scheme: Scheme, ask: AnswerSettings, seed: int) -> str:
    """Return a digest of what decides an answer apart from its prompt: the model and how it is sampled."""
    kept = {name: value for name, value in result_settings(ask).items() if name not in NOT_SAMPLING}
    if not ask.temperature:
        kept["retry_temperature"] = ask.retry_temperature
    regex = answer_regex(scheme, ask.min_chars, ask.max_chars)
    arguments = result_settings(engine)
    if ask.when_too_long == "reject":  # a prompt that fits is answered alike, whatever the limit
        arguments.pop("max_model_len", None)
    return digest([ANSWER.names, model_digest, kept, regex, engine.kind, arguments, seed])


def answer_key(*texts: str) -> str:
    """Return 32 hex digits of the texts; their lengths are hashed too, so that no border between them can move."""
    joined = "".join(f"{len(text)}:{text}" for text in texts)
    return hashlib.sha256(joined.encode()).hexdigest()[:32]
