"""The report of a study: rows side by side, their differences with intervals, and the conclusions that follow.

Shapes: N tested pairs, S resamples of queries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill.metrics import METRICS, Metric, bootstrap_differences, interval, label_metrics
from distill.study.config import StudyConfig
from distill.study.data import StudyData
from distill.study.segment_tables import by_segment
from distill.study.study import FinishedRow, best_candidate

MEANS = ("auc", "ndcg_at_10", "calibration_error")
RATIOS = ("alignment_over_ce_loss", "alignment_over_ce_gradient")
REFERENCES = ("baseline", "shuffled", "control")
NAMES = {"accuracy": "accuracy", "macro_f1": "macro-F1"}

Draws = tuple[float, np.ndarray]


def compare(
    config: StudyConfig, data: Sequence[StudyData], rows: Mapping[str, Sequence[FinishedRow]]
) -> dict[str, Any]:
    """Return the study's report, ready for JSON.

    Returns: `data`, one part per data set; `pooled`, the mean over data sets of the best LRKD row's differences, with
        the queries of each data set resampled on their own; `figures`, those that the benchmark names; `conclusions`.
    """
    found = [data_part(config, one, rows[one.name], config.seed + place) for place, one in enumerate(data)]
    parts, drawn = [part for part, _ in found], [draws for _, draws in found]
    pooled: dict[str, dict[str, Any]] = {}
    for key in drawn[0]:
        if all(key in draws for draws in drawn):  # a mean is over all data sets or not given
            differences, samples = zip(*(draws[key] for draws in drawn), strict=True)
            reference, metric = key
            pooled.setdefault(reference, {})[metric] = interval(float(np.mean(differences)), np.mean(samples, axis=0))
    report = {
        "name": config.name,
        "settings": config.model_dump(mode="json", exclude={"cluster", "workers"}),
        "data": parts,
        "pooled": pooled,
    }
    return report | {"figures": figures(report), "conclusions": conclusions(report)}


def data_part(
    config: StudyConfig, data: StudyData, rows: Sequence[FinishedRow], seed: int
) -> tuple[dict[str, Any], dict[tuple[str, str], Draws]]:
    """Return one data set's part of the report, and the best row's draws by reference and metric."""
    pairs = data.pairs
    gold, queries = pairs.column("gold"), pairs.column("query")
    best = best_candidate(rows, config)
    references = [row for row in rows if row.row.role in REFERENCES]
    answers = {row.row.name: answers_by_seed(data, row) for row in rows}

    def draws(row: FinishedRow, reference: FinishedRow, metric: Metric) -> Draws:
        first, second = (answers[one.row.name] for one in (reference, row))
        resamples = config.bootstrap_resamples
        return bootstrap_differences(gold, first, second, queries, pairs.scheme, metric, resamples, seed)

    table: list[dict[str, Any]] = []
    kept: dict[tuple[str, str], Draws] = {}
    for row in rows:
        line = row_line(row, gold, answers[row.row.name]) | {"best": row is best, "over": {}}
        for reference in references:
            # Every row is compared with the baseline, but only the best row with its controls.
            if reference is row or (reference.row.role != "baseline" and row is not best):
                continue
            found = {metric: draws(row, reference, metric) for metric in METRICS}
            line["over"][reference.row.name] = {metric: interval(*found[metric]) for metric in METRICS}
            if row is best:
                kept |= {(reference.row.name, metric): found[metric] for metric in METRICS}
        table.append(line)
    return {
        "name": data.name,
        "tested_pairs": len(gold),
        "queries": len(set(queries)),
        "train_pairs": rows[0].finals[0]["train_pairs"],
        "dev_pairs": pairs.dev_pairs,
        "folds": pairs.folds,
        "labels": dict(Counter(gold)),
        "perspectives": list(pairs.perspectives),
        "best": best.row.name,
        "runs": sum(len(row.trials) + len(row.finals) for row in rows),
        "hours": sum(record["seconds"] for row in rows for record in row.trials + row.finals) / 3600,
        "beside": without_students(gold, pairs.column("vote")),
        "rows": table,
        "segments": by_segment(
            pairs,
            {row.row.name: answers[row.row.name] for row in rows if row in references or row is best},
            baseline=next(row.row.name for row in rows if row.row.role == "baseline"),
            best=best.row.name,
            resamples=config.bootstrap_resamples,
            seed=seed,
        ),
    }, kept


def answers_by_seed(data: StudyData, row: FinishedRow) -> list[list[str]]:
    """Return N labels per seed: the answers of all folds, in the order of the tested pairs."""
    pairs = data.pairs
    answers: dict[int, list[str]] = {}
    for record in row.finals:
        own = answers.setdefault(record["seed"], [""] * len(pairs.tested))
        for place, label in zip(pairs.tested_in(record["fold"]), record["predicted"].split(), strict=True):
            own[place] = label
    return list(answers.values())


def row_line(row: FinishedRow, gold: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return a row's figures: accuracy and macro-F1 over all folds for each seed, the others as means over runs."""
    scored = [label_metrics(gold, own) for own in answers]
    student = row.student
    return {
        "name": row.row.name,
        "title": row.row.title,
        "role": row.row.role,
        "chosen": {
            "learning_rate": student.train.learning_rate,
            "epochs": student.train.epochs,
            **{name: getattr(student, name) for name in row.row.tunes or ()},
            **({"normalise_targets": student.normalise_targets} if student.alignment_weight else {}),
        },
        "trials": len(row.trials),
        "dev": {metric: row.on_dev(metric) for metric in METRICS},
        **{metric: over_seeds([one[metric] for one in scored]) for metric in METRICS},
        **{name: _mean(record["test"][name] for record in row.finals) for name in MEANS},
        **{name: _mean(record["dev"].get(name) for record in row.finals) for name in RATIOS},
        "seconds_per_run": _mean(record["seconds"] for record in row.finals),
    }


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Return the mean, the sample's standard deviation (None with one seed) and the values of all seeds."""
    known = [value for value in values if value is not None]
    return {"mean": _mean(known), "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None, "seeds": known}


def without_students(gold: Sequence[str], votes: Sequence[str | None]) -> dict[str, Any]:
    """Return the figures of always giving the most frequent label, and of the teacher's vote where there is one."""
    label = Counter(gold).most_common(1)[0][0]
    judged = [(g, vote) for g, vote in zip(gold, votes, strict=True) if vote is not None]
    return {
        "majority": {"label": label, **label_metrics(gold, [label] * len(gold))},
        "teacher": {"pairs": len(judged), **label_metrics([g for g, _ in judged], [vote for _, vote in judged])},
    }


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the benchmark's figures in points: the pooled ones, and those of each data set with its name appended."""
    found = {}
    places = [("", report["pooled"], report["data"][0])]
    places += [(f"_{part['name']}", _best(part)["over"], part) for part in report["data"]]
    for end, over, part in places:
        baseline, shuffled = (_named(part, role) for role in ("baseline", "shuffled"))
        gains = {f"{metric}_gain": over[baseline][metric] for metric in METRICS}
        if shuffled in over:
            gains["gain_over_shuffled"] = over[shuffled]["macro_f1"]
        for name, gain in gains.items():
            found[f"{name}_points{end}"] = 100 * gain["difference"]
            found[f"{name}_low{end}"] = 100 * gain["low"]
    return found


def conclusions(report: Mapping[str, Any]) -> list[str]:
    """Return the conclusions that the intervals allow, as sentences."""
    said = []
    for part in report["data"]:
        best = _best(part)
        titles = {row["name"]: row["title"] for row in part["rows"]}
        for reference, over in best["over"].items():
            said += [f"{part['name']}: {sentence(best['title'], titles[reference], m, over[m])}" for m in METRICS]
    if len(report["data"]) > 1:
        titles = {row["name"]: row["title"] for part in report["data"] for row in part["rows"]}
        for reference, over in report["pooled"].items():
            said += [f"Pooled: {sentence('the best LRKD row', titles[reference], m, over[m])}" for m in over]
    return said


def sentence(title: str, reference: str, metric: str, found: Mapping[str, float]) -> str:
    """Return which of two rows is ahead, or that the data does not tell them apart."""
    verdict = f"the data does not tell {title} and {reference} apart"
    if found["low"] > 0:
        verdict = f"{title} beats {reference}"
    elif found["high"] < 0:
        verdict = f"{title} does worse than {reference}"
    points = ", ".join(f"{100 * found[name]:+.1f}" for name in ("low", "high"))
    return f"{verdict} in {NAMES[metric]}: {100 * found['difference']:+.1f} points, 95 % interval {points}."


def _best(part: Mapping[str, Any]) -> dict[str, Any]:
    (best,) = (row for row in part["rows"] if row["best"])
    return dict(best)


def _named(part: Mapping[str, Any], role: str) -> str | None:
    return next((row["name"] for row in part["rows"] if row["role"] == role), None)


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
