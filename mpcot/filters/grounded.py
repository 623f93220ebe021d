"""Objects to a rationale that names a number, a model or a brand that neither the query nor the product has.

Brands are words with a capital letter that does not come from the start of a sentence, so they are found in languages
that write no other nouns with one. Some rationales fail that are right about the world ("Apple" about an iPhone).
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

from cluster.base.errors import UserError
from mpcot.filters.config import GroundedFilter

GENERAL = Path(__file__).parent / "general_words.toml"
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
OWN_NUMBER = re.compile(rf"(?<![^\W_]){NUMBER.pattern}")  # not that of a model, as A2337
WORD = re.compile(r"[^\W_]+(?:['’.&][^\W_]+)*")
UNIT = re.compile(r"\d+(?:x\d+)+|\d+[a-z]{1,4}")  # 12x18 and 18v: their numbers are looked at
SENTENCE_START = re.compile(r"(?:^|[.!?:;\n\"“”(\[/•])\W*$")
POSSESSIVE = re.compile(r"['’]?s?$")
DIGIT, LETTER = re.compile(r"\d"), re.compile(r"[^\W\d]")
THOUSANDS = re.compile(r",(?=\d{3}\b)")
APART = re.compile(r"[\W_]+")
YEAR = re.compile(r"(?:19|20)\d\d")  # of a film or a car that is known to the world
SMALL = 3  # "two of 3 demands": so small a number counts what the rationale itself speaks of
COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
STEM = 5  # letters by which Israeli and Israel are taken for one word
ALIKE = 0.7  # similarity of a brand to its misspelling in a query

Grounds = Callable[[str, str], str | None]


def grounded(step: GroundedFilter) -> Grounds:
    """Return an objection to a rationale, the first argument, in view of query and product, the second.

    Raises:
        UserError: the word list cannot be read.
    """
    general = _general() | (_own(step.words_file) if step.words_file else frozenset())

    def objection(rationale: str, text: str) -> str | None:
        known = _known(text)
        if not all(number in general or known.has_number(number) for number in OWN_NUMBER.findall(rationale)):
            return "not grounded: a number"
        for found in WORD.finditer(rationale):
            word = found[0]
            if word.lower() in general:
                continue
            low = POSSESSIVE.sub("", word.lower())
            if low in general or APART.sub("", low) in known.packed:
                continue
            if _like_a_model(low):
                return "not grounded: a model name"
            if step.brands and _like_a_brand(rationale, found) and not known.has_word(low):
                return "not grounded: a brand"
        return None

    return objection


class _Known:
    """What a text has: its words, its letters and digits without anything between, and its numbers."""

    def __init__(self, text: str) -> None:
        low = text.lower()
        self.words = frozenset(APART.split(low))
        self.packed = APART.sub("", low)
        found = NUMBER.findall(low)
        values = [
            _value(number) for number in [*found, *(part for number in found for part in re.split("[.,]", number))]
        ]
        self.values = {*values, *range(SMALL + 1), *(n for n, name in enumerate(COUNTS) if name in self.words)}
        self.digits = frozenset(map(_digits, found))

    def has_number(self, number: str) -> bool:
        """Return whether the text has the number, one that rounds to it, or the same in a unit of another size."""
        if YEAR.fullmatch(number):
            return True
        half, said = 0.5 * 10.0 ** -len(number.partition(".")[2]), _value(number)
        if said in self.values or any(abs(value - said) <= half for value in self.values):
            return True
        return len(_digits(number)) > 1 and _digits(number) in self.digits

    def has_word(self, low: str) -> bool:
        """Return whether the text has the word, one with the same stem, or one that is spelt much like it."""
        if len(low) < STEM:
            return low in self.words
        return any(word.startswith(low[:STEM]) for word in self.words) or bool(
            difflib.get_close_matches(low, self.words, n=1, cutoff=ALIKE)
        )


@lru_cache(maxsize=256)
def _known(text: str) -> _Known:
    return _Known(text)  # the answers about one pair come one after the other


def _value(number: str) -> float:
    """Return 1,000 as 1000, 17,5 as 17.5, and of 2.4.1 the first two parts."""
    whole = THOUSANDS.sub("", number).replace(",", ".")
    return float(".".join(whole.split(".")[:2]))


def _digits(number: str) -> str:
    return APART.sub("", number).strip("0")


def _like_a_model(low: str) -> bool:
    return bool(DIGIT.search(low) and LETTER.search(low) and not UNIT.fullmatch(low))


def _like_a_brand(text: str, found: re.Match[str]) -> bool:
    """Return whether a word of the text has a capital letter that does not come from the start of a sentence."""
    word = found[0]
    if len(word) <= 2 or not word[0].isupper() or (word.isupper() and len(word) == 3):
        return False
    return not SENTENCE_START.search(text[: found.start()])


@cache
def _general() -> frozenset[str]:
    lists = tomllib.loads(GENERAL.read_text(encoding="utf-8"))
    return frozenset(word.lower() for words in lists.values() for word in words.split())


@cache
def _own(path: str) -> frozenset[str]:
    try:
        return frozenset(Path(path).read_text(encoding="utf-8").lower().split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"filters: grounded.words_file {path} cannot be read as text: {error}") from error
