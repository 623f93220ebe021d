"""Why an answer failed, as text: a kind, by which reasons are counted, then what concerns this one request."""

from __future__ import annotations

# A rerun asks again after an engine error. The others would fail in the same way.
ENGINE_ERROR = "engine error"
PROMPT_TOO_LONG = "prompt too long"
STOPS_ENGINE = "stops the engine"
REFUSED = "refused by the model"
CUT = ", description cut"  # how the reason of a prompt ends that is too long even so
KINDS = (ENGINE_ERROR, PROMPT_TOO_LONG, STOPS_ENGINE, REFUSED)


def kind_of(reason: str) -> str:
    """Return the part of a reason by which reasons are counted."""
    kind, _, _ = reason.partition(":")
    return kind if kind in KINDS else reason


def too_long(tokens: int, limit: int, cut: bool) -> str:
    """Return the reason for a prompt of `tokens` tokens; `cut` says whether its description was cut."""
    return f"{PROMPT_TOO_LONG}: {tokens} tokens, {under(limit, cut)}"


def under(limit: int, cut: bool) -> str:
    """Return the end of that reason. It tells whether the prompt may fit under other settings."""
    return f"limit {limit}" + (CUT if cut else "")
