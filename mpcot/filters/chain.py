"""Applies the configured filters in their order. The first one that objects says why an answer is not kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from mpcot.filters import objections
from mpcot.filters.config import (
    Filter,
    FormFilter,
    GroundedFilter,
    LabelOnlyFilter,
    LanguageFilter,
    LengthFilter,
    NearDuplicateFilter,
    RepetitionFilter,
    VerdictFilter,
)
from mpcot.filters.grounded import grounded
from mpcot.filters.near_duplicates import KeptOfPair, KeptOfStage, shingles
from mpcot.perspectives.perspective import Perspective
from mpcot.records import NOT_GOLD, NOT_MAJORITY
from mpcot.schemes.scheme import Scheme
from mpcot.votes import Wanted


class WellFormed(NamedTuple):
    """A well-formed answer.

    `wanted` is the verdict to keep, `hinted` says that the prompt gave it away, and `text` is all that is known of
    query and product.
    """

    pair_id: str
    perspective: str
    rationale: str
    verdict: str
    wanted: Wanted
    hinted: bool = False
    text: str = ""


Step = Callable[[WellFormed], str | None]
BY_RATIONALE: dict[type, Callable[[Any, str], str | None]] = {
    LengthFilter: objections.length,
    RepetitionFilter: objections.repetition,
}


class Chain:
    """The filters of one stage. Its answers must come sorted by pair, perspective and sample.

    `pairs_apart` says that no answer is compared with those of another pair.
    """

    def __init__(self, filters: Sequence[Filter], scheme: Scheme, perspectives: Sequence[Perspective] = ()) -> None:
        self.scheme, self.perspectives = scheme, perspectives
        self.remember: list[Callable[[WellFormed], None]] = []
        self.steps = [_mentions_hint, *map(self._step, filters)]
        self.pairs_apart = not any(isinstance(f, NearDuplicateFilter) and f.within != "pair" for f in filters)

    def reason(self, answer: WellFormed) -> str | None:
        """Return why the answer is not kept. If it is kept, return None, and compare later answers with it."""
        for step in self.steps:
            if (found := step(answer)) is not None:
                return found
        for remember in self.remember:
            remember(answer)
        return None

    def _step(self, settings: Filter) -> Step:
        if isinstance(settings, NearDuplicateFilter):
            return self._near_duplicate(settings)
        if isinstance(settings, VerdictFilter):
            return _wrong_verdict
        if isinstance(settings, GroundedFilter):
            ungrounded = grounded(settings)
            return lambda answer: ungrounded(answer.rationale, answer.text)
        if isinstance(settings, FormFilter):
            return self._form(settings)
        objection = _objection(settings, self.scheme)
        return lambda answer: objection(answer.rationale)

    def _form(self, settings: FormFilter) -> Step:
        copies = {
            p.name: objections.copy_of([p.question, p.short, *(example.rationale for example in p.examples)])
            for p in self.perspectives
        }

        def form(answer: WellFormed) -> str | None:
            found = objections.form(settings, answer.rationale)
            copy = copies.get(answer.perspective)
            return copy(answer.rationale) if found is None and copy else found

        return form

    def _near_duplicate(self, settings: NearDuplicateFilter) -> Step:
        kept = KeptOfPair(settings) if settings.within == "pair" else KeptOfStage(settings)

        def group(answer: WellFormed) -> tuple[str, ...]:
            return answer.pair_id, answer.perspective, answer.verdict

        self.remember.append(lambda answer: kept.add(group(answer), shingles(answer.rationale)))
        return lambda answer: "near-duplicate" if kept.has_like(group(answer), shingles(answer.rationale)) else None


def _objection(settings: Filter, scheme: Scheme) -> objections.Objection:
    """Return the objection of a filter that looks at the rationale alone."""
    if isinstance(settings, LabelOnlyFilter):
        return objections.label_only(settings, scheme)
    if isinstance(settings, LanguageFilter):
        return objections.language(settings)
    return partial(BY_RATIONALE[type(settings)], settings)


def _mentions_hint(answer: WellFormed) -> str | None:
    return objections.hint(answer.rationale) if answer.hinted else None


def _wrong_verdict(answer: WellFormed) -> str | None:
    if answer.verdict == answer.wanted.verdict:
        return None
    return NOT_GOLD if answer.wanted.labelled else NOT_MAJORITY
