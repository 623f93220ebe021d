"""What each filter objects to, as pure functions of one rationale. A word is a run of letters and digits."""

from __future__ import annotations

import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from cluster.base.errors import UserError
from mpcot.asking.parsing import SENTENCE_END
from mpcot.asking.prompts import VERDICT
from mpcot.filters.config import FormFilter, LabelOnlyFilter, LanguageFilter, LengthFilter, RepetitionFilter
from mpcot.schemes.scheme import Scheme

Objection = Callable[[str], str | None]

FILLER = Path(__file__).parent / "filler.toml"
PHRASE_LOOP = re.compile(r"(\b\w[\w ,']{8,}?)(?:\W+\1){2,}", re.IGNORECASE)
WORD_LOOP = re.compile(r"\b(\w+)(?:\W+\1\b){3,}", re.IGNORECASE)
MARKUP = re.compile(r"```|</?[a-zA-Z|][^<>]*>|\*\*|^\s*(?:[#*-]|\d+[.)])\s", re.MULTILINE)
WORD = re.compile(r"\w+")
MENTION_OF_HINT = re.compile(
    r"\bhint|\b(told|given|provided|stated|correct|right) (verdict|label|answer)\b", re.IGNORECASE
)
REPEATED_WORDS = 3
COPIED = 0.6  # the least share of the pairs of neighbouring words that are those of the prompt


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return WORD.findall(text.lower())


def form(step: FormFilter, rationale: str) -> str | None:
    """Object to markup and lists, to a second verdict inside the rationale, and to an end in mid-sentence."""
    if VERDICT in rationale:
        return "form: a verdict within the rationale"
    if MARKUP.search(rationale):
        return "form: markup"
    if step.whole_sentences and not SENTENCE_END.search(rationale):
        return "form: ends in mid-sentence"
    return None


def copy_of(sources: Sequence[str]) -> Objection:
    """Object to a rationale that mostly repeats one of `sources`: the question, or an example about another pair."""
    known = [frozenset(pairwise(words_of(source))) for source in sources if source]

    def objection(rationale: str) -> str | None:
        said = list(pairwise(words_of(rationale)))
        copied = any(sum(map(own.__contains__, said)) >= COPIED * len(said) for own in known)
        return "form: a copy of the prompt" if said and copied else None

    return objection


def hint(rationale: str) -> str | None:
    """Object to a mention of the hint, which no later prompt has."""
    return "speaks of the hint" if MENTION_OF_HINT.search(rationale) else None


def length(step: LengthFilter, rationale: str) -> str | None:
    """Object to too few or too many words."""
    count = len(words_of(rationale))
    if count < step.min_words:
        return "length: too few words"
    return "length: too many words" if step.max_words is not None and count > step.max_words else None


def repetition(step: RepetitionFilter, rationale: str) -> str | None:
    """Object to loops, and to too large a share of repeated words."""
    most = step.max_repeated_share
    much = most is not None and repeated_share(words_of(rationale)) > most
    return "repetition" if much or loops(rationale) else None


def loops(text: str) -> bool:
    """Return whether a phrase comes three times in a row, or a word four times.

    The patterns are slow on a text without loops, so they are tried only if some words come twice in a row.
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
    """Return the share of the words that are part of a run of three words which comes more than once.

    This is the measure of repetition of Rae et al. 2021 (arXiv 2112.11446, appendix A), for one length, over words.
    """
    starts = range(len(words) - REPEATED_WORDS + 1)
    grams = [tuple(words[i : i + REPEATED_WORDS]) for i in starts]
    counts = Counter(grams)
    covered = {i + k for i in starts if counts[grams[i]] > 1 for k in range(REPEATED_WORDS)}
    return len(covered) / len(words) if words else 0.0


def label_only(step: LabelOnlyFilter, scheme: Scheme) -> Objection:
    """Object to a rationale that has no words of its own beside those of the scheme, the task and filler."""
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
    """Object if py3langid is sure that the rationale is in another language.

    Raises:
        UserError: py3langid does not know the configured language.
    """
    identifier = _identifier()
    if step.language not in identifier.labels:
        raise UserError(f"filters: py3langid does not know the language {step.language!r}. Give another ISO 639 code")

    def objection(rationale: str) -> str | None:
        found, confidence = identifier.classify(rationale)
        return "another language" if found != step.language and confidence >= step.min_confidence else None

    return objection


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
