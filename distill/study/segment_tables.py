"""A study's rows by segment. The segments are fixed beforehand; see `distill.study.data`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distill.study.config import StudyConfig, margin
from distill.study.data import StudyPairs
from distill.study.statistics import METRICS, Gold, gain, judged, scores


def by_segment(
    pairs: StudyPairs, students: Mapping[str, Mapping[int, np.ndarray]], subject: str, config: StudyConfig, seed: int
) -> list[dict[str, Any]]:
    """Return one line for each value of each segment.

    Args:
        students: the probabilities NxC of each row by seed.
        subject: the row whose gains over all others are given.

    Returns lines of `segment`, `value`, `pairs`, `queries`, `teacher` (accuracy of each perspective and of the vote;
        no answer is a wrong one), `students` (each row's figures, means over seeds) and `over`: the subject's gain
        over each other row, by metric.
    """
    lines = []
    for place, segment in enumerate(pairs.segments):
        values = [pair["segments"][place] for pair in pairs.tested]
        for value in sorted({value for value in values if value is not None}):
            rows = [row for row, own in enumerate(values) if own == value]
            part = pairs.model_copy(update={"tested": [pairs.tested[row] for row in rows]})
            own = {name: {s: found[rows] for s, found in seeds.items()} for name, seeds in students.items()}
            lines.append({"segment": segment, "value": value} | _line(part, own, subject, config, seed))
    return lines


def _line(
    pairs: StudyPairs, students: Mapping[str, Mapping[int, np.ndarray]], subject: str, config: StudyConfig, seed: int
) -> dict[str, Any]:
    gold, queries = pairs.column("gold"), pairs.column("query")
    said = {name: [pair["verdicts"][i] for pair in pairs.tested] for i, name in enumerate(pairs.perspectives)}
    said["vote"] = pairs.column("vote")
    tested = Gold.of(gold, queries, pairs.scheme)
    found = {name: scores(tested, own, config.bootstrap_resamples, seed) for name, own in students.items()}

    def over(name: str) -> dict[str, Any]:
        gains = {metric: gain(found[name], found[subject], metric, seed) for metric in METRICS}
        return {metric: judged(one, margin(config, metric)) for metric, one in gains.items()}

    return {
        "pairs": len(gold),
        "queries": len(set(queries)),
        "teacher": {name: float(np.mean(np.equal(gold, own))) for name, own in said.items()},
        "students": {name: {m: mean(one.whole[m]) for m in METRICS} for name, one in found.items()},
        "over": {name: over(name) for name in found if name != subject},
    }


def mean(values: np.ndarray) -> float | None:
    """Return the mean, or None where a figure is undefined."""
    return None if np.isnan(values).any() else float(np.mean(values))
