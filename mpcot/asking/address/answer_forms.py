"""Brings what servers write into the house form, a rationale and a last line `Verdict: X`, and reads its labels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import exp, log
from typing import Any

from mpcot.asking.parsing import without_confidence
from mpcot.asking.prompts import VERDICT, answer
from mpcot.schemes.scheme import Scheme

MARKS = " \t\r\n\"'`*_.,;:!()[]{}"
SAID = re.compile(r"^[\s*_#>\-]*(?:final\s+)?verdict[\s*_]*[:=\-\u2013\u2014][ \t]*(?P<said>[^\n]*)$", re.I | re.M)
LEAST = -1e4  # the log-probability of a label that the server did not list


def house_form(text: str, scheme: Scheme, confidence: bool = False) -> str:
    """Return an answer in the house form, or the text as it is where no verdict of the scheme can be read in it.

    Read are JSON with `rationale` and `verdict`, and text whose last line of the form "Verdict: X" (or else whose last
    line) names a label by code or name, with marks around it: "E.", "**Verdict:** E", "Verdict - Exact match".

    Args:
        confidence: whether the answer was to say how sure it is, on a line before or after the verdict.
    """
    text = text.rpartition("</think>")[2].strip()
    if from_json := _from_json(text, scheme, confidence):
        return from_json
    whole, sure = text, None
    if confidence:
        sure, text = without_confidence(text)
        text = text.strip()
    lines = [(match.start(), match.end(), match["said"]) for match in SAID.finditer(text)]
    if not lines and (last := text.rpartition("\n")[2]):
        lines = [(len(text) - len(last), len(text), last)]
    if not lines:
        return whole
    start, end, said = lines[-1]
    code = label_of(said, scheme)
    rationale = text[:start].strip() or text[end:].strip()
    return whole if code is None else answer(rationale, code, sure)


def _from_json(text: str, scheme: Scheme, confidence: bool) -> str | None:
    start, end = text.find("{"), text.rfind("}")
    if not 0 <= start < end:
        return None
    try:
        found = json.loads(text[start : end + 1])
    except json.JSONDecodeError:
        return None
    if not isinstance(found, dict) or not {"rationale", "verdict"} <= found.keys():
        return None
    said = str(found["verdict"])
    sure = found.get("confidence") if confidence else None
    return answer(str(found["rationale"]).strip(), label_of(said, scheme) or said, sure)


def label_of(said: str, scheme: Scheme) -> str | None:
    """Return the code of the one label that is named, by code or name, in "E", "Exact", "E (Exact)", "Exact match"."""
    bare = said.strip(MARKS)
    if bare in scheme.codes:
        return bare
    first = re.split(r"[\s*_.,:;()\-\u2013\u2014]+", bare, maxsplit=1)[0]
    names = {label.name.lower(): label.code for label in scheme.labels}
    found = {names[word.lower()] for word in re.findall(r"\w+", bare) if word.lower() in names}
    if first in scheme.codes:
        found.add(first)
    return found.pop() if len(found) == 1 else None


def label_logprobs(steps: Sequence[Mapping[str, Any]] | None, verdict: str, scheme: Scheme) -> list[float] | None:
    """Return the log-probabilities of the labels at the verdict, by the text of tokens.

    Args:
        steps: the tokens of the answer as OpenAI's API tells them, each with its `top_logprobs`.
        verdict: the code that was read in the answer.

    Returns:
        One value per label in the order of the scheme, or None where the last token that names a label is not the
        verdict or has no alternatives beside it.
    """
    for step in reversed(steps or ()):
        code = _coded(str(step.get("token", "")), scheme)
        if code is None:
            continue
        told = step.get("top_logprobs") or ()
        shares = dict.fromkeys(scheme.codes, 0.0)
        for one in told:
            if other := _coded(str(one["token"]), scheme):
                shares[other] += exp(one["logprob"])
        if code != verdict or not shares[code]:
            return None
        return [max(log(share), LEAST) if share else LEAST for share in shares.values()]
    return None


def _coded(token: str, scheme: Scheme) -> str | None:
    """Return the label whose code or name the token is, marks aside."""
    bare = token.strip(MARKS)
    names = {label.name: label.code for label in scheme.labels}
    return bare if bare in scheme.codes else names.get(bare)


def confidence_is_last(text: str) -> bool:
    """Say whether an answer names its confidence after its verdict."""
    low = text.lower()
    return low.rfind("confidence") > low.rfind("verdict")


def verdict_of(text: str) -> str:
    """Return the verdict of an answer in the house form."""
    return text.rpartition(VERDICT)[2].strip()
