"""The configured filters in order: the first that objects says why an answer is not kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mpcot.filters import objections as steps
from mpcot.filters.config import (
    Filter,
    FormFilter,
    LabelOnlyFilter,
    LanguageFilter,
    LengthFilter,
    NearDuplicateFilter,
    RepetitionFilter,
)
from mpcot.filters.near_duplicates import kept_answers, shingles
from mpcot.records import NOT_GOLD, NOT_MAJORITY
from mpcot.schemes.scheme import Scheme
from mpcot.votes import Wanted


class Said(NamedTuple):
    """A well-formed answer; `wanted` is the verdict to keep, `hinted` says that the prompt gave it away."""

    pair_id: str
    perspective: str
    rationale: str
    verdict: str
    wanted: Wanted
    hinted: bool = False


Step = Callable[[Said], str | None]


class Chain:
    """Filters of one stage, for its answers in the stage's order: sorted by pair, perspective and sample."""

    def __init__(self, filters: Sequence[Filter], scheme: Scheme) -> None:
        self.scheme = scheme
        self.remember: list[Callable[[Said], None]] = []
        self.steps = [_hint, *(self._step(each, scheme) for each in filters)]

    def reason(self, said: Said) -> str | None:
        """Return why the answer is not kept, or None; then later ones are compared with it."""
        for step in self.steps:
            if (found := step(said)) is not None:
                return found
        for remember in self.remember:
            remember(said)
        return None

    def _step(self, settings: Filter, scheme: Scheme) -> Step:
        if isinstance(settings, NearDuplicateFilter):
            return self._near_duplicate(settings)
        objection = _objection(settings, scheme)
        return _verdict if objection is None else lambda said: objection(said.rationale)

    def _near_duplicate(self, settings: NearDuplicateFilter) -> Step:
        kept = kept_answers(settings)

        def group(said: Said) -> tuple[str, ...]:
            return said.pair_id, said.perspective, said.verdict

        self.remember.append(lambda said: kept.add(group(said), shingles(said.rationale)))
        return lambda said: "near-duplicate" if kept.has_like(group(said), shingles(said.rationale)) else None


def _objection(settings: Filter, scheme: Scheme) -> steps.Objection | None:
    """Return what a filter of the rationale alone objects to; None for the verdict's."""
    match settings:
        case FormFilter():
            return steps.form(settings)
        case LengthFilter():
            return steps.length(settings)
        case RepetitionFilter():
            return steps.repetition(settings)
        case LabelOnlyFilter():
            return steps.label_only(settings, scheme)
        case LanguageFilter():
            return steps.language(settings)
        case _:
            return None


def _hint(said: Said) -> str | None:
    return steps.hint(said.rationale) if said.hinted else None


def _verdict(said: Said) -> str | None:
    if said.verdict == said.wanted.verdict:
        return None
    return NOT_GOLD if said.wanted.labelled else NOT_MAJORITY
