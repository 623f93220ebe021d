"""A study's rows by segment: where queries are long, name a brand, or the perspectives conflict.

`pairs.json` keeps which segment a pair is in, so that the tables need no text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from cluster.config import Settings
from distill.metrics import METRICS, bootstrap_differences, interval, label_metrics
from distill.segments import Pairs, grouped
from mpcot.schemes.scheme import Scheme

NO_ANSWER = "-"


class Segment(Settings):
    """The values of a segment, and which of them each pair has: its number, or a dash."""

    values: tuple[str, ...]
    places: str

    def inside(self, value: int) -> list[int]:
        """Return the places of the pairs that have the value."""
        return [place for place, own in enumerate(self.places.split()) if own == str(value)]


def segments_of(pairs: Pairs, judged: Pairs, ids: Sequence[str]) -> dict[str, Segment]:
    """Return the segments of the pairs `ids`, in that order; one with a single value tells nothing and is left out."""
    found = {}
    for name, by_value in grouped(pairs, judged, ids).items():
        if len(by_value) < 2:
            continue
        numbers = {pair_id: str(number) for number, inside in enumerate(by_value.values()) for pair_id in inside}
        places = " ".join(numbers.get(pair_id, NO_ANSWER) for pair_id in ids)
        found[name] = Segment(values=tuple(by_value), places=places)
    return found


def by_segment(
    segments: Mapping[str, Segment], gold: Sequence[str], queries: Sequence[str], scheme: Scheme,
    teacher: Mapping[str, Sequence[str]], students: Mapping[str, Sequence[Sequence[str]]], *,
    baseline: str, best: str, resamples: int, seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return one line per segment's value.

    Args:
        teacher: N verdicts by what gave them (a perspective, the vote); a dash is no answer, and wrong.
        students: N labels per seed, by row.

    Returns lines of `segment`, `value`, `pairs`, `queries`, `teacher` (accuracy by name), `students` (accuracy and
        macro-F1 as means over seeds, by row) and `over`: the best row's difference to the baseline, by metric.
    """
    lines = []
    for name, segment in segments.items():
        for number, value in enumerate(segment.values):
            inside = segment.inside(number)
            own_gold, own_queries = _at(gold, inside), _at(queries, inside)
            told = {row: [_at(answers, inside) for answers in runs] for row, runs in students.items()}
            drawn = partial(
                bootstrap_differences, own_gold, told[baseline], told[best], own_queries, scheme,
                samples=resamples, seed=seed,
            )  # fmt: skip
            lines.append(
                {
                    "segment": name,
                    "value": value,
                    "pairs": len(inside),
                    "queries": len(set(own_queries)),
                    "teacher": {judge: _share(own_gold, _at(said, inside)) for judge, said in teacher.items()},
                    "students": {row: _means(own_gold, runs) for row, runs in told.items()},
                    "over": {metric: interval(*drawn(metric=metric)) for metric in METRICS},
                }
            )
    return lines


def _at(values: Sequence[str], places: Sequence[int]) -> list[str]:
    return [values[place] for place in places]


def _share(gold: Sequence[str], said: Sequence[str]) -> float:
    return float(np.mean([a == b for a, b in zip(gold, said, strict=True)]))


def _means(gold: Sequence[str], runs: Sequence[Sequence[str]]) -> dict[str, float]:
    scored = [label_metrics(gold, run) for run in runs]
    return {metric: float(np.mean([one[metric] for one in scored])) for metric in METRICS}
