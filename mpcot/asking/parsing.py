"""Reads rationale, verdict and the log-probabilities of the labels from what the engine returns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cluster.base.errors import UserError
from mpcot.asking.prompts import VERDICT
from mpcot.schemes.scheme import Scheme

STATED = re.compile(
    r"^[ \t*_#>\-]*confidence(?: level| score)?[ \t*_]*[:=\-\u2013\u2014](?P<said>[^\n]*)(?:\n|\Z)", re.I | re.M
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
CLOSING = r"['\"”’»)\]]*"
SENTENCE_END = re.compile(rf"[.!?…。！？]{CLOSING}$")
# 2.5 has a full stop and ends no sentence, and after the full-width signs comes no space.
SENTENCES = re.compile(rf".*(?:[.!?…]{CLOSING}(?=\s|$)|[。！？]{CLOSING})", re.DOTALL)


@dataclass(frozen=True)
class Parsed:
    """The parts of an answer. `reason` says why it cannot be used, and is None if it can.

    `confidence` is the probability, 0 to 1, that the answer itself gives to its verdict, or None if it says nothing.
    """

    rationale: str | None
    verdict: str | None
    reason: str | None
    confidence: float | None = None


def parse_answer(text: str, scheme: Scheme, confidence: bool = False) -> Parsed:
    """Split the text of an answer into rationale and verdict.

    The lines of a rationale stay apart, without blank ones and without white space around them. Where the form's length
    cut it off in mid-sentence, that sentence is left out, if whole ones are at least half of the text.

    Args:
        confidence: whether the answer was to say how sure it is. Without such a line it can be used all the same.
    """
    said, text = without_confidence(text) if confidence else (None, text)
    parsed = _parse(text, scheme)
    if said is None or parsed.reason is not None:
        return parsed
    try:
        return replace(parsed, confidence=share_stated(said))
    except ValueError as error:
        return replace(parsed, reason=str(error))


def without_confidence(text: str) -> tuple[str | None, str]:
    """Return what the last line about confidence says, or None, and the text without that line."""
    lines = list(STATED.finditer(text))
    if not lines:
        return None, text
    return lines[-1]["said"].strip(), text[: lines[-1].start()] + text[lines[-1].end() :]


def share_stated(said: str) -> float:
    """Return a percentage that somebody wrote, as a share: 0.85 for "85", "85 %", "**85%**", "85/100" and "0.85".

    Raises:
        ValueError: there is no number, or it is outside 0 to 100.
    """
    number = NUMBER.search(said)
    if number is None:
        raise ValueError(f"confidence is no number: {said[:20]!r}")
    value = float(number[0])
    percent = 100 * value if "." in number[0] and value <= 1 and "%" not in said else value
    if not 0 <= percent <= 100:
        raise ValueError(f"confidence outside 0 to 100: {said[:20]!r}")
    return percent / 100


def _parse(text: str, scheme: Scheme) -> Parsed:
    if not text.strip():
        return Parsed(None, None, "empty")
    rationale, marker, verdict = text.rpartition(f"\n{VERDICT}")
    rationale, verdict = _lines(rationale), verdict.strip()
    if not marker:
        return Parsed(_lines(text), None, "unparsable: no verdict line")
    if verdict not in scheme.codes:
        return Parsed(rationale, None, f"verdict outside the scheme: {verdict[:20]!r}")
    whole = whole_sentences(rationale)
    if 2 * len(whole) >= len(rationale):
        rationale = whole
    return Parsed(rationale, verdict, None) if rationale else Parsed(None, verdict, "empty")


def whole_sentences(text: str) -> str:
    """Return the text up to the end of its last whole sentence, or "" if there is none."""
    found = SENTENCES.match(text.strip())
    return found.group() if found else ""


def _lines(text: str) -> str:
    return "\n".join(line for line in (" ".join(line.split()) for line in text.splitlines()) if line)


@dataclass(frozen=True)
class LabelTokens:
    """The tokens by which the labels differ at the verdict: one id per label, in the order of the scheme.

    `spelt` are the codes without the space in front, as an untrained model may write the space as a token of its own.
    """

    ids: tuple[int, ...]
    spelt: tuple[int, ...] = ()

    @property
    def all(self) -> list[int]:
        """All ids whose log-probabilities the engine is asked for."""
        return list(dict.fromkeys(self.ids + self.spelt))

    @classmethod
    def of(cls, tokenizer: Any, scheme: Scheme) -> LabelTokens:
        """Find the first place where the tokens of the labels differ.

        Raises:
            UserError: two labels begin with the same token, so that their log-probabilities cannot be read.
        """
        texts = [f"\n{VERDICT} {code}" for code in scheme.codes]
        tokens = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        shortest = min(len(t) for t in tokens)
        place = next((i for i in range(shortest) if len({t[i] for t in tokens}) > 1), None)
        ids = [t[place] for t in tokens] if place is not None else []
        # The codes must differ in their first token, and no such token may come later in a code.
        shared = str(tokenizer.decode(tokens[0][:place])).strip()
        again = any(set(t[len(t) if place is None else place + 1 :]) & set(ids) for t in tokens)
        if len(set(ids)) != len(scheme.codes) or not VERDICT.startswith(shared) or again:
            raise UserError(
                f"labels: this tokenizer cannot tell the codes {', '.join(scheme.codes)} apart by their first "
                "token. Choose codes that begin differently, such as single letters or digits."
            )
        bare = [tokenizer.encode(code, add_special_tokens=False) for code in scheme.codes]
        single = all(len(t) == 1 for t in bare) and len({t[0] for t in bare}) == len(bare)
        return cls(tuple(ids), tuple(t[0] for t in bare) if single else ())

    def logprobs(self, steps: Iterable[tuple[int, Mapping[int, float]]]) -> list[float] | None:
        """Read the log-probabilities of the labels at the verdict.

        Args:
            steps: for each output token, from the last one on, its id, and the known log-probabilities at that place
                by token id.

        Returns:
            One value per label in the order of the scheme, or None if the verdict was written with other tokens.
        """
        for token, known in steps:
            for ids in (self.ids, self.spelt):
                if token in ids:
                    return [max(known.get(i, -1e4), -1e4) for i in ids]
        return None
