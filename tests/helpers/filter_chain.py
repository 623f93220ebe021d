"""Chains of filters, and answers for them to look at."""

from __future__ import annotations

from typing import Any

from mpcot.config import PerspectiveSettings, RationaleSettings
from mpcot.filters.chain import Chain, WellFormed
from mpcot.perspectives.perspective import load_perspectives
from mpcot.schemes.scheme import load_scheme
from mpcot.votes import Wanted

ESCI = load_scheme("esci")
DRILL = "The shopper wants a drill with a battery, and this drill has one of 18 volts."
Step = str | dict[str, Any]
GOLD = Wanted("E", 1.0, True)


def chain(*filters: Step) -> Chain:
    """Return these filters for E, S, C and I and the shipped perspectives."""
    return Chain(RationaleSettings(filters=filters).filters, ESCI, load_perspectives(PerspectiveSettings()))


def said(
    rationale: str, verdict: str = "E", gold: str | None = "E", pair: str = "p", view: str = "rules"
) -> WellFormed:
    """Return an answer; without a gold label the majority is of its verdict."""
    wanted = Wanted(gold, 1.0, True) if gold else Wanted(verdict, 0.5, False)
    return WellFormed(pair, view, rationale, verdict, wanted)
