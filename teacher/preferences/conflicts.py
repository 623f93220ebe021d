"""Preference pairs from conflicts: where one perspective's rationale reached the gold label and another's did not."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.base.stage_folder import digest
from mpcot.config import PreferenceSettings
from mpcot.schemes.scheme import Scheme

LEAST_PROBABILITY = 1e-9  # a label that was ruled out has none, and a logarithm must not be infinite


@dataclass(frozen=True)
class Candidate:
    """One answer of a pair that may become chosen or rejected."""

    pair_id: str
    perspective: str
    sample: int
    rationale: str
    verdict: str
    gold_probability: float | None


@dataclass(frozen=True)
class Preference:
    """A right and a wrong answer of one pair; their perspectives may differ."""

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
    weights = np.exp(np.asarray(logprobs, dtype=np.float64) - max(logprobs))
    return float(weights[scheme.index(gold)] / weights.sum())


def conflicts(
    answers: Iterable[Candidate],
    fallback: Iterable[Candidate],
    gold: Mapping[str, str | None],
    settings: PreferenceSettings,
    seed: int,
) -> list[Preference]:
    """Return the preference pairs, sorted by pair; never two right or two wrong answers.

    Args:
        answers: the SFT model's samples, right and wrong.
        fallback: right answers from elsewhere (first rationales, seeds), for pairs that no sample got right.
    """
    by_pair: dict[str, list[Candidate]] = defaultdict(list)
    spare: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in answers:
        by_pair[candidate.pair_id].append(candidate)
    for candidate in fallback:
        spare[candidate.pair_id].append(candidate)
    found: list[Preference] = []
    for pair_id in sorted(by_pair):
        label = gold[pair_id]
        if label is None:
            continue
        right = [c for c in by_pair[pair_id] if c.verdict == label]
        wrong = [c for c in by_pair[pair_id] if c.verdict != label]
        right = right or [c for c in spare[pair_id] if c.verdict == label]
        found += _combine(right, wrong, settings, random.Random(f"{seed}/{pair_id}"))
    return _capped(found, gold, settings, seed)


def _combine(
    right: list[Candidate], wrong: list[Candidate], settings: PreferenceSettings, draw: random.Random
) -> list[Preference]:
    """Return up to `per_pair` combinations, spread over the perspectives of both sides, then by `pick`."""
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
    """Return how much more (log-)probability the chosen answer's verdict gave to the gold label; None if unknown."""
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
    """Return what sorts by margin as `pick` says; unknown margins come last."""
    gap = None if settings.pick == "random" else margin(p.chosen, p.rejected, settings)
    if gap is None:
        return settings.pick != "random", 0.0
    return False, -gap if settings.pick == "widest" else gap


def _capped(
    found: list[Preference], gold: Mapping[str, str | None], settings: PreferenceSettings, seed: int
) -> list[Preference]:
    """Balance, and cap the whole, by a seeded draw that keeps the order."""
    order = list(range(len(found)))
    random.Random(seed).shuffle(order)
    drawn = _balanced([(place, found[place]) for place in order], gold, settings)[: settings.max_rows]
    # A cut may have made a label rarer than the ratio allows.
    return [preference for _, preference in sorted(_balanced(drawn, gold, settings), key=lambda pair: pair[0])]


Placed = tuple[int, Preference]


def _balanced(drawn: list[Placed], gold: Mapping[str, str | None], settings: PreferenceSettings) -> list[Placed]:
    """Drop the last of what is frequent until labels and perspectives hold their ratios together."""
    traits: tuple[tuple[float | None, Callable[[Preference], Any]], ...] = (
        (settings.label_ratio, lambda p: gold[p.chosen.pair_id]),
        (settings.perspective_ratio, lambda p: p.chosen.perspective),
        (settings.perspective_ratio, lambda p: p.rejected.perspective),
    )
    while True:
        before = len(drawn)
        for ratio, trait in traits:
            if ratio is not None:
                drawn = _cap([(trait(item[1]), item) for item in drawn], ratio)
        if len(drawn) == before:
            return drawn


def _cap(valued: list[tuple[Any, Placed]], ratio: float) -> list[Placed]:
    """Keep of each value at most `ratio` times as many as of the rarest."""
    counts = Counter(value for value, _ in valued)
    room = dict.fromkeys(counts, int(ratio * min(counts.values(), default=0)))
    kept = []
    for value, item in valued:
        if room[value]:
            room[value] -= 1
            kept.append(item)
    return kept
