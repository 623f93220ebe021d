"""What the runs of a study say: rows side by side, differences with intervals, and sentences chosen by them.

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
from distill.study.segment_tables import NO_ANSWER, by_segment
from distill.study.study import Finished, best_candidate

MEANS = ("auc", "ndcg_at_10", "calibration_error")
RATIOS = ("alignment_over_ce_loss", "alignment_over_ce_gradient")
REFERENCES = ("baseline", "shuffled", "control")
NAMES = {"accuracy": "accuracy", "macro_f1": "macro-F1"}

Draws = tuple[float, np.ndarray]


def compare(config: StudyConfig, data: Sequence[StudyData], rows: Mapping[str, Sequence[Finished]]) -> dict[str, Any]:
    """Return the study's report, ready for JSON.

    Returns: `data`, one part per data set; `pooled`, the plain mean over data sets of the best LRKD row's differences,
        queries drawn anew within each; `figures`, all that the benchmark names; `conclusions`.
    """
    parts: list[dict[str, Any]] = []
    drawn: dict[str, dict[tuple[str, str], Draws]] = {}
    for place, one in enumerate(data):
        part, best = data_part(config, one, rows[one.name], seed=config.seed + place)
        parts.append(part)
        drawn[one.name] = best
    # The best row is compared with every reference on every data set, so that the means are over all of them.
    shared = [key for key in next(iter(drawn.values())) if all(key in found for found in drawn.values())]
    pooled: dict[str, dict[str, Any]] = {}
    for reference, metric in shared:
        draws = [found[reference, metric] for found in drawn.values()]
        mean = float(np.mean([difference for difference, _ in draws])), np.mean([array for _, array in draws], axis=0)
        pooled.setdefault(reference, {})[metric] = interval(*mean)
    report = {
        "name": config.name,
        "settings": config.model_dump(mode="json", exclude={"cluster", "workers"}),
        "data": parts,
        "pooled": pooled,
    }
    return report | {"figures": figures(report), "conclusions": conclusions(report)}


def data_part(
    config: StudyConfig, data: StudyData, rows: Sequence[Finished], seed: int
) -> tuple[dict[str, Any], dict[tuple[str, str], Draws]]:
    """Return one data set's part, and the best row's draws by reference row's name and metric."""
    pairs = data.pairs
    gold, queries = pairs.column("gold"), pairs.column("queries")
    best = best_candidate(rows, config)
    references = [row for row in rows if row.row.role in REFERENCES]
    answers = {row.row.name: answers_by_seed(data, row) for row in rows}

    def draws(row: Finished, reference: Finished, metric: Metric) -> Draws:
        first, second = (answers[one.row.name] for one in (reference, row))
        scheme = pairs.scheme
        return bootstrap_differences(gold, first, second, queries, scheme, metric, config.bootstrap_resamples, seed)

    table: list[dict[str, Any]] = []
    kept: dict[tuple[str, str], Draws] = {}
    for row in rows:
        line = row_line(row, gold, answers[row.row.name]) | {"best": row is best, "over": {}}
        for reference in references:
            # Every row against the baseline; the controls only matter to the row that they control.
            if reference is row or (reference.row.role != "baseline" and row is not best):
                continue
            found = {metric: draws(row, reference, metric) for metric in METRICS}
            line["over"][reference.row.name] = {metric: interval(*found[metric]) for metric in METRICS}
            if row is best:
                kept |= {(reference.row.name, metric): found[metric] for metric in METRICS}
        table.append(line)
    part = {
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
        "beside": beside(gold, pairs.column("votes")),
        "rows": table,
        "segments": segment_lines(config, data, rows, best, answers, seed),
    }
    return part, kept


def segment_lines(
    config: StudyConfig, data: StudyData, rows: Sequence[Finished], best: Finished,
    answers: Mapping[str, list[list[str]]], seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the teacher, the baseline, the best row and its controls by segment."""
    pairs = data.pairs
    shown = [row.row.name for row in rows if row.row.role in REFERENCES or row is best]
    verdicts = {name: said.split() for name, said in pairs.verdicts.items()}
    return by_segment(
        pairs.segments, pairs.column("gold"), pairs.column("queries"), pairs.scheme,
        verdicts | {"vote": pairs.column("votes")}, {name: answers[name] for name in shown},
        baseline=next(row.row.name for row in rows if row.row.role == "baseline"), best=best.row.name,
        resamples=config.bootstrap_resamples, seed=seed,
    )  # fmt: skip


def answers_by_seed(data: StudyData, row: Finished) -> list[list[str]]:
    """Return N labels per seed, those of all folds put together in the order of `pairs.json`."""
    pairs = data.pairs
    answers: dict[int, list[str]] = {}
    for record in row.finals:
        own = answers.setdefault(record["seed"], [""] * len(pairs.column("gold")))
        for place, label in zip(pairs.rows_of(record["fold"]), record["predicted"].split(), strict=True):
            own[place] = label
    return list(answers.values())


def row_line(row: Finished, gold: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return a row's figures: accuracy and macro-F1 over all folds by seed, the others as means over runs."""
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
        **{metric: spread([one[metric] for one in scored]) for metric in METRICS},
        **{name: _mean(record["test"][name] for record in row.finals) for name in MEANS},
        **{name: _mean(record["dev"].get(name) for record in row.finals) for name in RATIOS},
        "seconds_per_run": _mean(record["seconds"] for record in row.finals),
    }


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean, standard deviation over seeds (of a sample; None with one seed) and the values."""
    known = [value for value in values if value is not None]
    return {"mean": _mean(known), "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None, "seeds": known}


def beside(gold: Sequence[str], votes: Sequence[str]) -> dict[str, Any]:
    """Return what needs no student: always the most frequent label, and the teacher's vote where it gave one."""
    label = Counter(gold).most_common(1)[0][0]
    judged = [(g, vote) for g, vote in zip(gold, votes, strict=True) if vote != NO_ANSWER]
    return {
        "majority": {"label": label, **label_metrics(gold, [label] * len(gold))},
        "teacher": {"pairs": len(judged), **label_metrics([g for g, _ in judged], [vote for _, vote in judged])},
    }


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the named figures, in points: pooled under plain names, per data set with its name at the end."""
    found = {}
    places = [("", report["pooled"], report["data"][0])]
    places += [(f"_{part['name']}", _best(part)["over"], part) for part in report["data"]]
    for end, over, part in places:
        baseline, shuffled = (_named(part, role) for role in ("baseline", "shuffled"))
        gains = over[baseline]
        found[f"accuracy_gain_points{end}"] = 100 * gains["accuracy"]["difference"]
        found[f"accuracy_gain_low{end}"] = 100 * gains["accuracy"]["low"]
        found[f"macro_f1_gain_points{end}"] = 100 * gains["macro_f1"]["difference"]
        found[f"macro_f1_gain_low{end}"] = 100 * gains["macro_f1"]["low"]
        if shuffled in over:
            found[f"gain_over_shuffled_points{end}"] = 100 * over[shuffled]["macro_f1"]["difference"]
            found[f"gain_over_shuffled_low{end}"] = 100 * over[shuffled]["macro_f1"]["low"]
    return found


def conclusions(report: Mapping[str, Any]) -> list[str]:
    """What the numbers allow to be said, in sentences chosen by them."""
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
    """Say which of two rows is ahead, or that the data does not tell."""
    verdict = f"the data does not tell {title} from {reference}"
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
