"""The report of a study: rows side by side, their gains with intervals, and what follows from them.

Shapes: N tested pairs, C labels, B resamples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from distill.metrics import calibration_error, label_metrics, ndcg_at
from distill.study.arms import StudyRow, named
from distill.study.conclusions import conclusions, figures
from distill.study.config import Comparison, DataSet, StudyConfig, margin
from distill.study.data import StudyData
from distill.study.probabilities import by_seed
from distill.study.segment_tables import by_segment, mean
from distill.study.statistics import METRICS, Gold, Scores, gain, holm, judged, scores
from distill.study.study import SKILL, FinishedRow, best_candidate, primary_of

RATIOS = ("alignment_over_ce_loss", "alignment_over_ce_gradient")
FEWEST_RANKED = 30  # queries that NDCG needs to be shown
Gain = tuple[float, np.ndarray]
Key = TypeVar("Key", bound=tuple[str, ...])


@dataclass(frozen=True)
class Part:
    """A data set's part of the report, and its gains by kind of reference and metric."""

    report: dict[str, Any]
    gains: dict[tuple[str, str], Gain]


def compare(
    config: StudyConfig, data: Sequence[StudyData], rows: Mapping[str, Sequence[FinishedRow]]
) -> dict[str, Any]:
    """Return the study's report, ready for JSON.

    Returns: `data`, one part per data set that hides nothing (or of all, if each hides something); `pooled`, the mean
        gains over them, whose queries and seeds are resampled on their own; `curve`, the rows by the share of the pairs
        that is taught; `figures`, those that the benchmark names; `conclusions`.
    """
    settings = {one.name: one for one in config.data}
    wholes = {one.name for one in config.data if not one.hides} or {*settings}
    whole = [
        data_part(config, settings[one.name], one, rows[one.name], place)
        for place, one in enumerate(data)
        if one.name in wholes
    ]
    points = [point(one, rows[one.name]) for one in data if one.name not in wholes]
    report = {
        "name": config.name,
        "settings": config.model_dump(mode="json", exclude={"cluster", "workers"}),
        "data": [part.report for part in whole],
        "pooled": pooled(whole, config) if len(whole) > 1 else {},
        "curve": curve(config, [*(part.report for part in whole), *points]),
    }
    return report | {"figures": figures(report), "conclusions": conclusions(report)}


def pooled(parts: Sequence[Part], config: StudyConfig) -> dict[str, dict[str, Any]]:
    """Return the mean gains over data sets by kind of reference; a kind that one of them lacks is left out.

    All of them are corrected for their number: the primary tests are of one data set each.
    """
    said: dict[tuple[str, str], dict[str, Any] | None] = {}
    for kind, metric in parts[0].gains:
        if all((kind, metric) in part.gains for part in parts):
            wholes, drawn = zip(*(part.gains[kind, metric] for part in parts), strict=True)
            both = float(np.mean(wholes)), np.mean(drawn, axis=0)
            said[kind, metric] = judged(both, margin(config, metric))
    found: dict[str, dict[str, Any]] = {}
    for (kind, metric), one in corrected(said).items():
        found.setdefault(kind, {})[metric] = one
    return found


def point(data: StudyData, rows: Sequence[FinishedRow]) -> dict[str, Any]:
    """Return what a learning curve needs of a data set that hides something: its rows without gains and intervals."""
    said, found = scored(data, rows, samples=1, seed=0)  # nobody looks at the one resample
    lines = [row_line(row, data, said[row.row.name], found[row.row.name]) for row in rows]
    return header(data, rows) | {"rows": lines}


def scored(
    data: StudyData, rows: Sequence[FinishedRow], samples: int, seed: int
) -> tuple[dict[str, dict[int, np.ndarray]], dict[str, Scores]]:
    """Return the probabilities of each row by seed, and its figures with their resamples."""
    pairs = data.pairs
    said = {row.row.name: by_seed(pairs, row.finals) for row in rows}
    tested = Gold.of(pairs.column("gold"), pairs.column("query"), pairs.scheme)
    fold = np.array(pairs.column("fold"))
    return said, {name: scores(tested, own, samples, seed, fold) for name, own in said.items()}


def data_part(config: StudyConfig, settings: DataSet, data: StudyData, rows: Sequence[FinishedRow], place: int) -> Part:
    """Return one data set's part of the report. Its resamples follow from the study's seed and its place."""
    pairs, seed = data.pairs, config.seed + place
    primary, best = primary_of(settings, config), best_candidate(rows, config)
    subject = next(row for row in rows if row.row.name == (primary.row if primary else best.row.name))
    said, found = scored(data, rows, config.bootstrap_resamples, seed)
    compared = comparisons([row.row for row in rows], primary)
    gains = {(a, b, m): gain(found[b], found[a], m, seed) for a, b in compared for m in METRICS}
    told = {key: judged(one, margin(config, key[2])) for key, one in gains.items()}
    # What cannot be served has intervals, but is in no test, so that it makes no other test stricter.
    ceilings = {row.row.name for row in rows if row.row.role == "ceiling"}
    over = told | corrected({key: one for key, one in told.items() if key[0] not in ceilings}, primary)
    kinds = references(subject.row, [row.row for row in rows])
    lines = []
    for row in rows:
        own: dict[str, dict[str, Any]] = {}
        for (name, against, metric), one in over.items():
            if name == row.row.name:
                own.setdefault(against, {})[metric] = one
        line = row_line(row, data, said[row.row.name], found[row.row.name])
        lines.append(line | {"best": row is best, "subject": row is subject, "over": own})
    shown = dict.fromkeys([*(name for pair in kinds.values() for name in pair), best.row.name, subject.row.name])
    return Part(
        header(data, rows)
        | {
            "primary": primary.model_dump() if primary else None,
            "subject": subject.row.name,
            "best": best.row.name,
            "references": kinds,
            "rows": lines,
            "segments": by_segment(pairs, {name: said[name] for name in shown}, subject.row.name, config, seed),
        },
        {(kind, m): gains[(*pair, m)] for kind, pair in kinds.items() for m in METRICS},
    )


def header(data: StudyData, rows: Sequence[FinishedRow]) -> dict[str, Any]:
    """Return what a data set is, and what its runs took."""
    pairs = data.pairs
    gold = pairs.column("gold")
    return {
        "name": data.name,
        "tested_pairs": len(gold),
        "queries": len(set(pairs.column("query"))),
        "train_pairs": rows[0].finals[0]["train_pairs"],
        "dev_pairs": pairs.dev_pairs,
        "seen_pairs": sum(pairs.column("seen")),
        "hidden_labels": pairs.hidden_labels,
        "hidden_unlabelled": pairs.hidden_unlabelled,
        "folds": pairs.folds,
        "labels": dict(Counter(gold)),
        "perspectives": list(pairs.perspectives),
        "runs": sum(len(row.trials) + len(row.finals) for row in rows),
        "hours": sum(record["seconds"] for row in rows for record in row.trials + row.finals) / 3600,
        "beside": without_students(gold, pairs.column("vote")),
    }


def comparisons(rows: Sequence[StudyRow], primary: Comparison | None) -> list[tuple[str, str]]:
    """Return which row is compared with which: all with the baseline and with KL, some with twin and controls.

    A candidate that starts from another row is compared with that row's controls, too.
    """
    found = [(primary.row, primary.against)] if primary else []
    fixed = [one.name for role in ("baseline", "soft_labels") if (one := named(rows, role))]
    for row in rows:
        if row.role == "baseline":
            continue
        found += [(row.name, name) for name in [*fixed, *([row.twin] if row.twin else [])] if name != row.name]
        found += [(row.name, own.name) for own in rows if own.of == row.name]
        if row.role == "candidate" and row.of is not None:
            found += [(row.name, own.name) for own in rows if own.of == row.of and own.role == "control"]
    return list(dict.fromkeys(found))


def references(subject: StudyRow, rows: Sequence[StudyRow]) -> dict[str, tuple[str, str]]:
    """Return by kind which row is held against which.

    The subject is held against `baseline`, `kl` and its `twin`; a row that has controls, against each of them.
    """
    fixed = {"baseline": named(rows, "baseline"), "kl": named(rows, "soft_labels")}
    found = {kind: (subject.name, row.name) for kind, row in fixed.items() if row is not None and row is not subject}
    if subject.twin is not None:
        found["twin"] = (subject.name, subject.twin)
    for row in sorted((row for row in rows if row.of is not None), key=lambda row: row.of != subject.name):
        found.setdefault(control_kind(row), (str(row.of), row.name))
    return found


def control_kind(row: StudyRow) -> str:
    """Return what a control does with the targets, or its name if it changes something else."""
    return str(row.changes.get("control", row.name))


def corrected(
    found: Mapping[Key, dict[str, Any] | None], primary: Comparison | None = None
) -> dict[Key, dict[str, Any] | None]:
    """Return the gains with `corrected`: p after Holm's correction for all tests that are given but the primary one."""
    first = (primary.row, primary.against, primary.metric) if primary else None
    rest = [key for key, one in found.items() if one is not None and key != first]
    raised = dict(zip(rest, holm([found[key]["p"] for key in rest]), strict=True))  # type: ignore[index]
    return {
        key: None if one is None else one | {"corrected": raised.get(key, one["p"]), "primary": key == first}
        for key, one in found.items()
    }


def row_line(row: FinishedRow, data: StudyData, said: Mapping[int, np.ndarray], found: Scores) -> dict[str, Any]:
    """Return a row's figures over all folds as means over seeds, and how it was tuned."""
    student, pairs = row.student, data.pairs
    gold, queries = pairs.column("gold"), pairs.column("query")
    ranked = [ndcg_at(gold, own, queries, pairs.scheme) for own in said.values()]
    codes = [[pairs.scheme.codes[i] for i in own.argmax(1)] for own in said.values()]
    errors = [calibration_error(gold, c, own, pairs.scheme) for c, own in zip(codes, said.values(), strict=True)]
    weights = {name: getattr(student, name) for name in row.row.weights}
    return {
        "name": row.row.name,
        "title": row.row.title + (" (cannot be served)" if row.row.role == "ceiling" else ""),
        "role": row.row.role,
        "alike": student.learns_means,
        "seeds": len(said),
        "chosen": {"learning_rate": student.train.learning_rate, "epochs": student.train.epochs, **weights},
        "trials": len(row.trials),
        "dev": {metric: row.on_dev(metric) for metric in METRICS},
        SKILL: row.on_dev(SKILL),
        **{metric: over_seeds(found.whole[metric]) for metric in METRICS},
        "ndcg_queries": ranked[0][1],
        "ndcg_at_10": _mean([one for one, count in ranked if count >= FEWEST_RANKED]),
        "calibration_error": _mean(errors),
        **{name: row.on_dev(name) for name in RATIOS},
        "train_pairs": round(float(np.mean([record["train_pairs"] for record in row.finals]))),
        "seconds_per_run": _mean([record["seconds"] for record in row.finals]),
    }


def over_seeds(values: np.ndarray) -> dict[str, Any]:
    """Return the mean, the sample's standard deviation (None with one seed) and the values of all seeds."""
    known = [float(value) for value in values if not np.isnan(value)]
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": mean(values), "sd": sd, "seeds": known}


def without_students(gold: Sequence[str], votes: Sequence[str | None]) -> dict[str, Any]:
    """Return the figures of always giving the most frequent label, and of the teacher's vote where there is one."""
    label = Counter(gold).most_common(1)[0][0]
    shares = np.array([*Counter(gold).values()]) / len(gold)
    known = [(g, vote) for g, vote in zip(gold, votes, strict=True) if vote is not None]
    return {
        "majority": {"label": label, **label_metrics(gold, [label] * len(gold))},
        "prior": {"log_loss": float(-(shares * np.log(shares)).sum())},
        "teacher": {"pairs": len(known), **label_metrics([g for g, _ in known], [vote for _, vote in known])},
    }


def curve(config: StudyConfig, parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the learning curves: the rows of each run folder that several shares of its pairs have in common."""
    folders = {one.name: str(one.run) for one in config.data}
    found = []
    for folder in dict.fromkeys(folders.values()):
        own = sorted(
            (p for p in parts if folders[p["name"]] == folder),
            key=lambda part: (-part["hidden_labels"], -part["hidden_unlabelled"]),
        )
        shared = set.intersection(*({row["name"] for row in part["rows"]} for part in own))
        if len(own) > 1:
            found += [
                {"data": part["name"], "row": row["title"], "train_pairs": row["train_pairs"]}
                | {"labels": 1 - part["hidden_labels"], "unlabelled": 1 - part["hidden_unlabelled"]}
                | {metric: row[metric]["mean"] for metric in METRICS}
                for part in own
                for row in part["rows"]
                if row["name"] in shared
            ]
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
