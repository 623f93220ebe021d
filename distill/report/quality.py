"""The quality part of the report: judges beside one another on the same test pairs, through `distill.metrics`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill.metrics import METRICS, evaluate, label_metrics, majority_baseline, paired_bootstrap
from distill.student.calibration import calibrated
from mpcot.schemes.scheme import Scheme

Rows = list[dict[str, Any]]
Pairs = dict[str, dict[str, Any]]

TITLES = {
    "teacher": "Teacher, vote",
    "lrkd": "Student, LRKD",
    "ce_only": "Student, labels only",
    "majority": "Majority class",
}


def headline(
    pairs: Pairs, judged: Pairs, students: Mapping[str, Pairs], scheme: Scheme, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Every judge on the test pairs that all of them answered, and LRKD minus labels only with its interval.

    Returns: `test_pairs`, `pairs` (those compared), `queries`, `judges` (one row of metrics each, by name),
        `majority_label`, `differences` by metric (empty without a labels-only student), `conclusions`.
    """
    test = [i for i, row in pairs.items() if row["split"] == "test"]
    ids = [i for i in test if i in judged and all(i in rows for rows in students.values())]
    gold, queries = [pairs[i]["label"] for i in ids], [pairs[i]["query_id"] for i in ids]
    judges = {"teacher": _teacher_row(ids, gold, queries, judged, scheme)}
    judges["teacher"] |= _calibrated(pairs, ids, judged, "vote", "soft", scheme)
    answers = {name: [rows[i]["label"] for i in ids] for name, rows in students.items()}
    for name, rows in students.items():
        probabilities = np.array([rows[i]["probabilities"] for i in ids])
        judges[name] = evaluate(gold, probabilities, queries, scheme, answers[name])
        judges[name] |= _calibrated(pairs, ids, rows, "label", "probabilities", scheme)
    train = [row["label"] for row in pairs.values() if row["split"] == "train" and row["label"] is not None]
    majority = majority_baseline(train, gold)
    judges["majority"] = {"pairs": len(ids), **majority}
    differences = {}
    if "ce_only" in answers:
        differences = {
            metric: paired_bootstrap(
                gold, answers["ce_only"], answers["lrkd"], queries, scheme, metric, resamples, seed=seed
            )
            for metric in METRICS
        }
    found = {"test_pairs": len(test), "pairs": len(ids), "queries": len(set(queries)), "judges": judges}
    found |= {"majority_label": majority["label"], "differences": differences}
    return found | {"conclusions": conclusions(found)}


def _teacher_row(
    ids: Sequence[str], gold: Sequence[str], queries: Sequence[str], judged: Pairs, scheme: Scheme
) -> dict[str, Any]:
    soft = np.array([judged[i]["soft"] for i in ids])
    return evaluate(gold, soft, queries, scheme, [judged[i]["vote"] for i in ids])


def _calibrated(
    pairs: Pairs, ids: Sequence[str], judge: Pairs, label: str, probabilities: str, scheme: Scheme
) -> dict[str, Any]:
    """The judge's temperature, fitted on its dev pairs, and its calibration error on the test pairs `ids` with it."""
    dev = [i for i in judge if pairs[i]["split"] == "dev"]
    gold = [[pairs[i]["label"] for i in chosen] for chosen in (dev, ids)]
    soft = [
        np.array([judge[i][probabilities] for i in chosen], dtype=float).reshape(-1, len(scheme.codes))
        for chosen in (dev, ids)
    ]
    return calibrated((gold[0], soft[0]), gold[1], [judge[i][label] for i in ids], soft[1], scheme)


def conclusions(found: Mapping[str, Any]) -> list[str]:
    """What the numbers allow to be said, in sentences chosen by them."""
    if not found["pairs"]:
        return ["No test pair was answered by every judge, so nothing can be compared."]
    said = [_difference(metric, found["differences"][metric]) for metric in METRICS if found["differences"]]
    if not said:
        said = ["No student was trained on labels only (student.baseline is off), so LRKD has nothing to beat here."]
    said += [_beside_majority(name, found["judges"]) for name in ("teacher", "lrkd")]
    said.append(
        f"One seed, {found['pairs']} pairs of {found['queries']} queries: differences between seeds come on top"
        " of the intervals given."
    )
    if found["pairs"] < found["test_pairs"]:
        said.append(
            f"{found['test_pairs'] - found['pairs']} of {found['test_pairs']} test pairs are left out for every"
            " judge, because one of them gave no answer."
        )
    return said


def _difference(metric: str, d: Mapping[str, Any]) -> str:
    name = {"accuracy": "accuracy", "macro_f1": "macro-F1"}[metric]
    verdict = "The data does not tell LRKD and labels only apart"
    if d["low"] > 0:
        verdict = "LRKD beats labels only"
    elif d["high"] < 0:
        verdict = "LRKD does worse than labels only"
    interval = f"{round(100 * d['confidence'])} % interval {100 * d['low']:+.1f} to {100 * d['high']:+.1f}"
    return f"{verdict} in {name} here: difference {100 * d['difference']:+.1f} points, {interval}."


def _beside_majority(name: str, judges: Mapping[str, Any]) -> str:
    gap = 100 * (judges[name]["accuracy"] - judges["majority"]["accuracy"])
    how = "above" if gap > 0 else "below"
    size = "exactly as accurate as" if gap == 0 else f"{abs(gap):.1f} points of accuracy {how}"
    return f"{TITLES[name]}: {size} always answering {judges['majority']['label']}."


def teacher(pairs: Pairs, judged: Pairs, names: Sequence[str], scheme: Scheme) -> Rows:
    """The trained teacher on the test split: each perspective on the pairs it answered, and the vote."""
    test = [(pairs[i], row) for i, row in judged.items() if pairs[i]["split"] == "test"]
    found = []
    for p, name in enumerate(names):
        said = [(pair, row) for pair, row in test if row["verdicts"][p] is not None]
        found.append(
            _row_of(
                name, said, [r["verdicts"][p] for _, r in said], [r["perspective_soft"][p] for _, r in said], scheme
            )
        )
    return [*found, _row_of("vote", test, [r["vote"] for _, r in test], [r["soft"] for _, r in test], scheme)]


def _row_of(
    name: str, said: Sequence[tuple[Any, Any]], answers: list[str], soft: list[Any], scheme: Scheme
) -> dict[str, Any]:
    gold, queries = [pair["label"] for pair, _ in said], [pair["query_id"] for pair, _ in said]
    return {"name": name, **evaluate(gold, np.array(soft, dtype=float), queries, scheme, answers)}


def stages_of_teacher(
    pairs: Pairs, judged: Pairs, answers: Mapping[str, Mapping[str, Rows]], names: Sequence[str]
) -> Rows:
    """Verdicts of the untrained model, of the SFT model and of the trained teacher, per split and perspective.

    All three on the pairs that the untrained model answered. Train pairs were trained on; dev pairs are held out.
    """
    said = {stage: _verdicts(found) for stage, found in answers.items()}
    final = [(i, name, v) for i, row in judged.items() for name, v in zip(names, row["verdicts"], strict=True) if v]
    asked = {(i, name) for i, name, _ in said["2-rationales"]}
    models = {"untrained": said["2-rationales"], "sft": said["4-samples"], "dpo": final}
    rows = []
    for split in ("train", "dev", "test"):
        for name in (*names, "all"):
            row: dict[str, Any] = {"split": split, "perspective": name}
            for model, verdicts in models.items():
                here = [
                    (pairs[i]["label"], v)
                    for i, n, v in verdicts
                    if name in (n, "all") and (i, n) in asked and pairs[i]["split"] == split and pairs[i]["label"]
                ]
                gold, answer = zip(*here, strict=True) if here else ((), ())
                row[model] = {"answers": len(here), **label_metrics(gold, answer)}
            if row["untrained"]["answers"]:
                rows.append(row)
    return rows


def _verdicts(found: Mapping[str, Rows]) -> list[tuple[str, str, str]]:
    """Pair, perspective and verdict of every answer that has one, kept or filtered."""
    rows = [*found["kept"], *found["filtered"]]
    return [(row["pair_id"], row["perspective"], row["verdict"]) for row in rows if row["verdict"] is not None]


def agreement(pairs: Pairs, judged: Pairs, names: Sequence[str]) -> dict[str, Any]:
    """How often two perspectives of the trained teacher give the same verdict on a test pair that both judged."""
    verdicts = [row["verdicts"] for i, row in judged.items() if pairs[i]["split"] == "test"]
    matrix: list[list[float | None]] = []
    for a in range(len(names)):
        both = [[v[a] == v[b] for v in verdicts if v[a] and v[b]] for b in range(len(names))]
        matrix.append([float(np.mean(same)) if same else None for same in both])
    unanimous = [len(set(v)) == 1 for v in verdicts if all(v)]
    return {
        "names": list(names),
        "matrix": matrix,
        "pairs": len(verdicts),
        "unanimous": float(np.mean(unanimous)) if unanimous else None,
    }
