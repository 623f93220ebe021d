"""Why an answer failed, as text: a kind that can be counted, then what is of the one request alone."""

from __future__ import annotations

# What a rerun asks again, and what no further try can mend.
ENGINE_ERROR = "engine error"
PROMPT_TOO_LONG = "prompt too long"
STOPS_ENGINE = "stops the engine"
KINDS = (ENGINE_ERROR, PROMPT_TOO_LONG, STOPS_ENGINE)


def kind_of(reason: str) -> str:
    """Return the countable part of a reason."""
    kind, _, _ = reason.partition(":")
    return kind if kind in KINDS else reason


def too_long(tokens: int, limit: int, cut: bool) -> str:
    """Return the reason of a prompt of `tokens` tokens where `limit` are taken, `cut` if its description was."""
    return f"{PROMPT_TOO_LONG}: {tokens} tokens, {under(limit, cut)}"


def under(limit: int, cut: bool) -> str:
    """Return how that reason ends: under other settings the prompt is worth asking again."""
    return f"limit {limit}" + (", description cut" if cut else "")
