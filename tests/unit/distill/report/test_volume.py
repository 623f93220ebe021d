"""What each further thousand of judged pairs brought."""

from __future__ import annotations

from typing import Any

import pytest

from distill.report import volume
from distill.report.volume import by_thousand
from mpcot.schemes.scheme import load_scheme

ESCI = load_scheme("esci")


def judged(vote: str, verdicts: list[str | None]) -> dict[str, Any]:
    return {"vote": vote, "verdicts": verdicts, "soft": [0.4, 0.3, 0.2, 0.1]}


def test_shares_follow_the_order_of_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "THOUSAND", 2)
    pairs = {f"p{n}": {"split": "unlabelled"} for n in range(4)} | {"gold": {"split": "train"}}
    said = {
        "gold": judged("E", ["E", "E"]),
        "p3": judged("I", [None, None]),
        "p1": judged("S", ["S", "E"]),
        "p0": judged("E", ["E", "E"]),
    }
    first, second = by_thousand(pairs, said, ESCI)
    assert (first["first"], first["last"], second["first"], second["last"]) == (1, 2, 3, 3)
    assert first["labels"] == {"E": 0.5, "S": 0.5, "C": 0, "I": 0} and second["labels"]["I"] == 1
    assert first["confidence"] == pytest.approx(0.35) and second["confidence"] == pytest.approx(0.1)
    assert first["unanimous"] == 0.5 and second["unanimous"] is None
    assert by_thousand({"gold": {"split": "train"}}, said, ESCI) == []
