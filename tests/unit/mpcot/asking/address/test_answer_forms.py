"""What servers write, brought into the house form, and the log-probabilities beside it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mpcot.asking.address.answer_forms import house_form, label_logprobs
from mpcot.asking.address.chat_requests import answer_schema, read_reply
from mpcot.asking.parsing import parse_answer
from mpcot.schemes.scheme import load_scheme
from tests.helpers.scripted_server import completion

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


@pytest.mark.parametrize(
    "text",
    [
        f"{WHY}\nConfidence: 85 %\nVerdict: E",
        f"{WHY}\n**Verdict:** Exact\n**Confidence:** 85",
        f"{WHY}\n\nConfidence - 85\n\nE.",
        f"{WHY}\nE\nconfidence level: 0.85",
        f"Confidence: 85/100\nVerdict: E\n{WHY}",
        f'{{"rationale": "{WHY}", "confidence": 85, "verdict": "E"}}',
        f'{{"rationale": "{WHY}",\n"verdict": "Exact",\n"confidence": "85 %"}}',
    ],
)
def test_a_confidence_is_read_tolerantly(text: str) -> None:
    said = house_form(text, ESCI, confidence=True)
    assert said.startswith(f"{WHY}\nConfidence: ") and said.endswith("\nVerdict: E")
    found = parse_answer(said, ESCI, confidence=True)
    assert (found.rationale, found.verdict, found.confidence, found.reason) == (WHY, "E", 0.85, None)


def test_without_a_verdict_a_confidence_says_nothing() -> None:
    text = f"{WHY} I cannot say.\nConfidence: 20"
    assert house_form(text, ESCI, confidence=True) == text
    assert parse_answer(text, ESCI, confidence=True).reason == "unparsable: no verdict line"
    assert parse_answer(house_form(f"{WHY}\nVerdict: E", ESCI, True), ESCI, True).confidence is None


def test_the_digits_of_a_confidence_are_no_labels() -> None:
    def logprobs(text: str, *tokens: str) -> list[float] | None:
        steps = [step(token, **{token: 0.75, "9": 0.25}) for token in tokens]
        body = completion(text, logprobs={"content": steps})
        return read_reply(body, [], GRADED, confidence=True).logprobs

    before = logprobs(f"{WHY}\nConfidence: 92\nVerdict: 2", "9", "2", "Verdict", " 2")
    assert before is not None and math.exp(before[GRADED.index("2")]) == pytest.approx(0.75)
    assert logprobs(f"{WHY}\nVerdict: 2\nConfidence: 92", " 2", "9", "2") is None


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


def test_the_schema_of_an_answer_ends_with_the_verdict() -> None:
    assert answer_schema(ESCI)["required"] == ["rationale", "verdict"]
    asked = answer_schema(ESCI, confidence=True)
    assert asked["required"] == list(asked["properties"]) == ["rationale", "confidence", "verdict"]
    assert asked["properties"]["confidence"] == {"type": "integer"}


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
