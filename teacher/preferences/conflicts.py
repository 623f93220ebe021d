"""Preferences from conflicts: pairs for which one answer reached the gold label and another one did not."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from scipy.special import softmax

from cluster.base.stage_folder import digest
from mpcot.schemes.scheme import Scheme
from teacher.config import PreferenceSettings

LEAST_PROBABILITY = 1e-9  # keeps the logarithm finite for a label that was ruled out


@dataclass(frozen=True)
class Candidate:
    """One answer to a pair, which may be chosen or rejected."""

    pair_id: str
    perspective: str
    sample: int
    rationale: str
    verdict: str
    gold_probability: float | None


@dataclass(frozen=True)
class Preference:
    """A right and a wrong answer to the same pair; their perspectives may differ."""

    chosen: Candidate
    rejected: Candidate

    @property
    def id(self) -> str:
        sides = [(c.perspective, c.sample, c.rationale) for c in (self.chosen, self.rejected)]
        return digest([self.chosen.pair_id, sides])


def gold_probability(logprobs: list[float] | None, gold: str, scheme: Scheme) -> float | None:
    """Return the probability that the verdict token gave to the gold label, normalised over the labels."""
    if logprobs is None:
        return None
    return float(softmax(np.asarray(logprobs, dtype=np.float64))[scheme.index(gold)])


def all_conflicts(
    answers: Iterable[Candidate],
    fallback: Iterable[Candidate],
    gold: Mapping[str, str | None],
    settings: PreferenceSettings,
    seed: int,
) -> list[Preference]:
    """Return the preferences of some pairs, sorted by pair. Each has one right and one wrong answer.

    Args:
        answers: the SFT model's samples, right and wrong.
        fallback: answers from elsewhere (first rationales, seeds) for pairs that no sample got right.
    """
    by_pair: dict[str, list[Candidate]] = defaultdict(list)
    spare: dict[str, list[Candidate]] = defaultdict(list)
    for kept, source in ((by_pair, answers), (spare, fallback)):
        for candidate in source:
            kept[candidate.pair_id].append(candidate)
    found: list[Preference] = []
    for pair_id in sorted(by_pair):
        label = gold[pair_id]
        if label is None:
            continue
        right = [c for c in by_pair[pair_id] if c.verdict == label]
        wrong = [c for c in by_pair[pair_id] if c.verdict != label]
        right = right or [c for c in spare[pair_id] if c.verdict == label]
        found += _combine(right, wrong, settings, random.Random(f"{seed}/{pair_id}"))
    return found


def _combine(
    right: list[Candidate], wrong: list[Candidate], settings: PreferenceSettings, draw: random.Random
) -> list[Preference]:
    """Return up to `per_pair` combinations that use many perspectives and answers; among equals `pick` decides."""
    options = [
        Preference(chosen, rejected)
        for chosen in right
        for rejected in wrong
        if (settings.cross_perspective or chosen.perspective == rejected.perspective)
        and _within(margin(chosen, rejected, settings), settings)
    ]
    draw.shuffle(options)
    taken: list[Preference] = []
    used: dict[Any, int] = defaultdict(int)

    def cost(p: Preference) -> tuple[Any, ...]:
        return used[p.chosen.perspective] + used[p.rejected], used[p.chosen], *_rank(p, settings)

    while options and len(taken) < settings.per_pair:
        best = min(options, key=cost)
        options.remove(best)
        taken.append(best)
        for place in (best.chosen, best.rejected, best.chosen.perspective):
            used[place] += 1
    return taken


def margin(chosen: Candidate, rejected: Candidate, settings: PreferenceSettings) -> float | None:
    """Return how much more (log-)probability the chosen answer gave to the gold label; None if that is unknown."""
    high, low = chosen.gold_probability, rejected.gold_probability
    if high is None or low is None:
        return None
    if settings.margin_by == "probability":
        return high - low
    return math.log(max(high, LEAST_PROBABILITY)) - math.log(max(low, LEAST_PROBABILITY))


def _within(gap: float | None, settings: PreferenceSettings) -> bool:
    if gap is None:
        return settings.unknown_margin == "keep"
    return settings.min_margin <= gap and (settings.max_margin is None or gap <= settings.max_margin)


def _rank(p: Preference, settings: PreferenceSettings) -> tuple[bool, float]:
    """Return a key that sorts by margin as `pick` says, with unknown margins last."""
    gap = None if settings.pick == "random" else margin(p.chosen, p.rejected, settings)
    if gap is None:
        return settings.pick != "random", 0.0
    return False, -gap if settings.pick == "widest" else gap


Drawn = list[tuple[int, Preference]]


def limited(
    found: list[Preference], gold: Mapping[str, str | None], settings: PreferenceSettings, seed: int
) -> list[Preference]:
    """Return what is left after balancing and `max_rows`: drawn by the seed, in the order given."""
    drawn = list(enumerate(found))
    random.Random(seed).shuffle(drawn)
    drawn = _balanced(drawn, gold, settings)[: settings.max_rows]
    # Once more, because the cut may have made a label rarer than its ratio allows.
    return [preference for _, preference in sorted(_balanced(drawn, gold, settings), key=itemgetter(0))]


def _balanced(drawn: Drawn, gold: Mapping[str, str | None], settings: PreferenceSettings) -> Drawn:
    """Leave out the last preferences of frequent labels and perspectives until all ratios hold at the same time."""
    traits: tuple[tuple[float | None, Callable[[Preference], Any]], ...] = (
        (settings.label_ratio, lambda p: gold[p.chosen.pair_id]),
        (settings.perspective_ratio, lambda p: p.chosen.perspective),
        (settings.perspective_ratio, lambda p: p.rejected.perspective),
    )
    while True:
        before = len(drawn)
        for ratio, trait in traits:
            if ratio is not None:
                drawn = _capped(drawn, trait, ratio)
        if len(drawn) == before:
            return drawn


def _capped(drawn: Drawn, trait: Callable[[Preference], Any], ratio: float) -> Drawn:
    """Keep of each value of a trait at most `ratio` times as many preferences as of the rarest value."""
    values = [trait(preference) for _, preference in drawn]
    most = int(ratio * min(Counter(values).values(), default=0))
    seen: Counter[Any] = Counter()
    kept = []
    for value, item in zip(values, drawn, strict=True):
        seen[value] += 1
        if seen[value] <= most:
            kept.append(item)
    return kept
