"""What each filter objects to: pure functions of one rationale. Words are runs of letters and digits."""

from __future__ import annotations

import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from cluster.base.errors import UserError
from mpcot.asking.prompts import VERDICT
from mpcot.filters.config import FormFilter, LabelOnlyFilter, LanguageFilter, LengthFilter, RepetitionFilter
from mpcot.schemes.scheme import Scheme

Objection = Callable[[str], str | None]

FILLER = Path(__file__).parent / "filler.toml"
PHRASE_LOOP = re.compile(r"(\b\w[\w ,']{8,}?)(?:\W+\1){2,}", re.IGNORECASE)
WORD_LOOP = re.compile(r"\b(\w+)(?:\W+\1\b){3,}", re.IGNORECASE)
MARKUP = re.compile(r"```|</?[a-zA-Z|][^<>]*>|\*\*|^\s*[#*-]\s")
STOP = r"[.!?…。！？]['\"”’»)\]]*"
SENTENCE_END = re.compile(STOP + "$")
WORD = re.compile(r"\w+")
HINT_SPOKEN_OF = re.compile(
    r"\bhint|\b(told|given|provided|stated|correct|right) (verdict|label|answer)\b", re.IGNORECASE
)
REPEATED_WORDS = 3


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return WORD.findall(text.lower())


def form(step: FormFilter) -> Objection:
    """Object to markup, to a second verdict within the rationale, and to an end in mid-sentence."""

    def objection(rationale: str) -> str | None:
        if VERDICT in rationale:
            return "form: a verdict within the rationale"
        if MARKUP.search(rationale):
            return "form: markup"
        if step.whole_sentences and not SENTENCE_END.search(rationale):
            return "form: ends in mid-sentence"
        return None

    return objection


def hint(rationale: str) -> str | None:
    """Object to words about the hint, which no later prompt has."""
    return "speaks of the hint" if HINT_SPOKEN_OF.search(rationale) else None


def length(step: LengthFilter) -> Objection:
    """Object to too few or too many words."""

    def objection(rationale: str) -> str | None:
        count = len(words_of(rationale))
        if count < step.min_words:
            return "length: too few words"
        return "length: too many words" if step.max_words is not None and count > step.max_words else None

    return objection


def repetition(step: RepetitionFilter) -> Objection:
    """Object to loops, and to too large a share of words that are said again."""

    def objection(rationale: str) -> str | None:
        if loops(rationale):
            return "repetition"
        share = step.max_repeated_share
        return "repetition" if share is not None and repeated_share(words_of(rationale)) > share else None

    return objection


def loops(text: str) -> bool:
    """Return whether a phrase comes three times in a row, or a word four times.

    The patterns are slow on text that does not loop, so they are tried only where some words come twice in a row.
    """
    return _twice_in_a_row(words_of(text)) and bool(PHRASE_LOOP.search(text) or WORD_LOOP.search(text))


def _twice_in_a_row(words: list[str]) -> bool:
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, word in enumerate(words):
        earlier = places[word]
        for before in earlier:
            if words[before:place] == words[place : 2 * place - before]:
                return True
        earlier.append(place)
    return False


def repeated_share(words: list[str]) -> float:
    """Return the share of words that lie within three words which come more than once.

    The repetition measure of Rae et al. 2021 (arXiv 2112.11446, appendix A), for one length and over words.
    """
    starts = range(len(words) - REPEATED_WORDS + 1)
    grams = [tuple(words[i : i + REPEATED_WORDS]) for i in starts]
    counts = Counter(grams)
    covered = {i + k for i in starts if counts[grams[i]] > 1 for k in range(REPEATED_WORDS)}
    return len(covered) / len(words) if words else 0.0


def label_only(step: LabelOnlyFilter, scheme: Scheme) -> Objection:
    """Object to a rationale whose words are all the scheme's, the task's or filler."""
    known = _filler() | {
        word for label in scheme.labels for word in words_of(f"{label.code} {label.name} {label.meaning}")
    }

    def objection(rationale: str) -> str | None:
        return "names the label only" if len(set(words_of(rationale)) - known) < step.min_words else None

    return objection


@cache
def _filler() -> frozenset[str]:
    lists = tomllib.loads(FILLER.read_text(encoding="utf-8"))
    return frozenset(word for words in lists.values() for word in words.split())


def language(step: LanguageFilter) -> Objection:
    """Object where py3langid is sure of another language.

    Raises:
        UserError: it does not know the one asked for.
    """
    identifier = _identifier()
    if step.language not in identifier.labels:
        raise UserError(
            f"filters: language {step.language!r} is not one that py3langid knows, which takes ISO 639 codes"
        )

    def objection(rationale: str) -> str | None:
        found, confidence = identifier.classify(rationale)
        return "another language" if found != step.language and confidence >= step.min_confidence else None

    return objection


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
