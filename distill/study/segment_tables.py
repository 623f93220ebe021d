"""A study's rows by segment: where queries are long or name a brand, or where the perspectives conflict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill.metrics import METRICS, bootstrap_differences, interval, label_metrics
from distill.study.data import StudyPairs


def by_segment(
    pairs: StudyPairs, students: Mapping[str, Sequence[Sequence[str]]], *, baseline: str, best: str,
    resamples: int, seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return one line for each value of each segment.

    Args:
        students: the labels that each row gave to all pairs, one list per seed.

    Returns lines of `segment`, `value`, `pairs`, `queries`, `teacher` (accuracy of each perspective and of the vote;
        no answer is a wrong one), `students` (accuracy and macro-F1 of each row, means over seeds) and `over`: the
        best row's difference to the baseline, by metric.
    """
    lines = []
    for place, segment in enumerate(pairs.segments):
        values = [pair["segments"][place] for pair in pairs.tested]
        for value in sorted({value for value in values if value is not None}):
            rows = [row for row, own in enumerate(values) if own == value]
            tested = [pairs.tested[row] for row in rows]
            gold, queries = [pair["gold"] for pair in tested], [pair["query"] for pair in tested]
            verdicts = {name: [pair["verdicts"][i] for pair in tested] for i, name in enumerate(pairs.perspectives)}
            verdicts["vote"] = [pair["vote"] for pair in tested]
            answers = {name: [[run[row] for row in rows] for run in runs] for name, runs in students.items()}
            over = {
                metric: bootstrap_differences(
                    gold, answers[baseline], answers[best], queries, pairs.scheme, metric, resamples, seed
                )
                for metric in METRICS
            }
            lines.append(
                {
                    "segment": segment,
                    "value": value,
                    "pairs": len(gold),
                    "queries": len(set(queries)),
                    "teacher": {name: float(np.mean(np.equal(gold, said))) for name, said in verdicts.items()},
                    "students": {name: _means(gold, runs) for name, runs in answers.items()},
                    "over": {metric: interval(*found) for metric, found in over.items()},
                }
            )
    return lines


def _means(gold: Sequence[str], runs: Sequence[Sequence[str]]) -> dict[str, float]:
    scored = [label_metrics(gold, run) for run in runs]
    return {metric: float(np.mean([one[metric] for one in scored])) for metric in METRICS}
