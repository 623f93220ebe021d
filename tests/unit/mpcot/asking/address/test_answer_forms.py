"""What servers write, brought into the house form, and the log-probabilities beside it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mpcot.asking.address.answer_forms import house_form, label_logprobs
from mpcot.asking.parsing import parse_answer
from mpcot.schemes.scheme import load_scheme

ESCI, GRADED = load_scheme("esci"), load_scheme("graded")
WHY = "It is a drill."


@pytest.mark.parametrize(
    "text",
    [
        f"{WHY}\nVerdict: E",
        f"{WHY}\nVerdict: E.",
        f"{WHY}\n**Verdict:** E",
        f"{WHY}\n**Verdict: E**",
        f"{WHY}\n\n### Verdict - Exact match",
        f"{WHY}\nVerdict \u2013 (E) Exact",
        f"{WHY}\nFinal verdict: `E`\n",
        f"{WHY}\nVERDICT: exact",
        f"{WHY}\nverdict = E (it is the very thing)",
        f"{WHY}\nE.",
        f"{WHY}\nExact",
        f"Verdict: E\n{WHY}",
        f"<think>Verdict: I? No.</think>{WHY}\nVerdict: E",
        f"<think>Verdict: I\n{WHY}</think>\n\n{WHY}\nVerdict: Exact",
        f'{{"rationale": "{WHY}", "verdict": "E"}}',
        f'```json\n{{"rationale": "{WHY}",\n "verdict": "Exact"}}\n```',
    ],
)
def test_read_tolerantly(text: str) -> None:
    found = parse_answer(house_form(text, ESCI), ESCI)
    assert (found.rationale, found.verdict, found.reason) == (WHY, "E", None)


def test_the_last_verdict_counts() -> None:
    said = house_form("Verdict: I would say E at first.\nNo.\nVerdict: Substitute.", ESCI)
    assert parse_answer(said, ESCI).verdict == "S"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("<think>on and on", "unparsable: no verdict line"),
        (f"{WHY} I cannot say.", "unparsable: no verdict line"),
        (f"{WHY}\nVerdict: X", "verdict outside the scheme: 'X'"),
        (f"{WHY}\nVerdict: Exact or Substitute", "verdict outside the scheme: 'Exact or Substitute'"),
        (f'{{"rationale": "{WHY}", "verdict": "maybe"}}', "verdict outside the scheme: 'maybe'"),
        (f'{{"rationale": "{WHY}", "verd', "unparsable: no verdict line"),
        ("Verdict: E", "empty"),
    ],
)
def test_what_cannot_be_read_stays_and_says_why(text: str, reason: str) -> None:
    assert parse_answer(house_form(text, ESCI), ESCI).reason == reason


def test_codes_that_are_digits() -> None:
    assert parse_answer(house_form("2 of 3 agree.\nVerdict: 1 - Fair", GRADED), GRADED).verdict == "1"


def step(token: str, **beside: float) -> dict[str, Any]:
    told = [{"token": name.replace("_", " "), "logprob": math.log(share)} for name, share in beside.items()]
    return {"token": token, "logprob": -0.1, "top_logprobs": told}


def test_label_logprobs_by_the_text_of_tokens() -> None:
    """ "E" and " E" are one label; a label that is not listed has no probability to speak of."""
    steps = [step(" E", _E=1.0), step("Verdict"), step(":"), step(" S", _S=0.6, S=0.1, _E=0.2, x=0.05), step(".")]
    found = label_logprobs(steps, "S", ESCI)
    assert found is not None
    assert [math.exp(value) for value in found] == pytest.approx([0.2, 0.7, 0.0, 0.0])
    assert found[2:] == [-1e4, -1e4]


def test_label_logprobs_of_names_and_of_json() -> None:
    assert label_logprobs([step(" Exact", _Exact=0.5, _Sub=0.5)], "E", ESCI) == pytest.approx(
        [math.log(0.5), *[-1e4] * 3]
    )
    assert label_logprobs([step('"E', **{'"E': 0.9, '"I': 0.1}), step('"}')], "E", ESCI) == pytest.approx(
        [math.log(0.9), -1e4, -1e4, math.log(0.1)]
    )


@pytest.mark.parametrize("steps", [None, [], [step("E")], [step(" I", _I=1.0)], [step("no")]])
def test_no_logprobs_without_a_token_that_is_the_verdict(steps: Any) -> None:
    assert label_logprobs(steps, "E", ESCI) is None
