"""Preference pairs from conflicts: where one perspective's rationale reached the gold label and another's did not."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.artifacts import digest
from mpcot.config import PreferenceSettings
from mpcot.labels import Scheme


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
    """Return up to `per_pair` combinations, spread over the perspectives of both sides."""
    options = [
        Preference(chosen, rejected)
        for chosen in right
        for rejected in wrong
        if (settings.cross_perspective or chosen.perspective == rejected.perspective)
        and _margin(chosen, rejected) >= settings.min_margin
    ]
    draw.shuffle(options)
    taken: list[Preference] = []
    used: dict[Any, int] = defaultdict(int)
    while options and len(taken) < settings.per_pair:
        best = min(options, key=lambda p: (used[p.chosen.perspective] + used[p.rejected], used[p.chosen]))
        options.remove(best)
        taken.append(best)
        for place in (best.chosen, best.rejected, best.chosen.perspective):
            used[place] += 1
    return taken


def _margin(chosen: Candidate, rejected: Candidate) -> float:
    """Gap of the gold label's probability; an answer of unknown probability counts as sure of its verdict."""
    high = 1.0 if chosen.gold_probability is None else chosen.gold_probability
    low = 0.0 if rejected.gold_probability is None else rejected.gold_probability
    return high - low


def _capped(
    found: list[Preference], gold: Mapping[str, str | None], settings: PreferenceSettings, seed: int
) -> list[Preference]:
    """Cap every gold label and the whole, by a seeded draw that keeps the order."""
    order = list(range(len(found)))
    random.Random(seed).shuffle(order)
    if settings.balance_labels:
        counts: dict[Any, int] = defaultdict(int)
        for preference in found:
            counts[gold[preference.chosen.pair_id]] += 1
        cap = 4 * min(counts.values(), default=0)
        seen: dict[Any, int] = defaultdict(int)
        kept = []
        for place in order:
            label = gold[found[place].chosen.pair_id]
            seen[label] += 1
            if seen[label] <= cap:
                kept.append(place)
        order = kept
    return [found[place] for place in sorted(order[: settings.max_rows])]
