"""The report's part on quality, which compares the judges on the same test pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill.metrics import METRICS, evaluate, label_metrics, majority_baseline, paired_bootstrap, rater_ceiling
from distill.student.calibration import calibrated
from mpcot.schemes.scheme import Scheme

Rows = list[dict[str, Any]]
Pairs = dict[str, dict[str, Any]]

FEWEST_QUERIES = 30  # of a test split, below which its figures say little
TITLES = {
    "teacher": "Teacher, vote",
    "lrkd": "Student, LRKD",
    "ce_only": "Student, labels only",
    "majority": "Majority class",
}


def headline(
    pairs: Pairs, judged: Pairs, students: Mapping[str, Pairs], scheme: Scheme, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Compare all judges on the test pairs that each of them answered, and LRKD with labels only.

    Returns: `test_pairs`, `pairs` (those compared), `queries`, `judges` (one row of metrics each, by name),
        `majority_label`, `differences` by metric (empty without a student on labels only), `ceiling` (None if no pair
        has several raters), `conclusions`.
    """
    vote = {i: {"label": row["vote"], "probabilities": row["soft"]} for i, row in judged.items()}
    answers = {"teacher": vote, **students}
    test = [i for i, row in pairs.items() if row["split"] == "test"]
    ids = [i for i in test if all(i in rows for rows in answers.values())]
    gold, queries = _column(pairs, ids, "label"), _column(pairs, ids, "query_id")
    judges = {name: _metrics(pairs, ids, rows, scheme) for name, rows in answers.items()}
    for name, rows in answers.items():
        dev = [i for i in rows if pairs[i]["split"] == "dev"]
        fitted_on = _column(pairs, dev, "label"), _probabilities(rows, dev, scheme)
        said = _column(rows, ids, "label")
        judges[name] |= calibrated(fitted_on, gold, said, _probabilities(rows, ids, scheme), scheme)
    train = [row["label"] for row in pairs.values() if row["split"] == "train" and row["label"] is not None]
    majority = majority_baseline(train, gold)
    judges["majority"] = {"pairs": len(ids), **majority}
    differences = {}
    if "ce_only" in students:
        first, second = (_column(students[name], ids, "label") for name in ("ce_only", "lrkd"))
        differences = {
            metric: paired_bootstrap(gold, first, second, queries, scheme, metric, resamples, seed=seed)
            for metric in METRICS
        }
    found = {"test_pairs": len(test), "pairs": len(ids), "queries": len(set(queries)), "judges": judges}
    found |= {"majority_label": majority["label"], "differences": differences}
    found["ceiling"] = rater_ceiling(pairs[i].get("ratings") for i in ids)
    return found | {"conclusions": conclusions(found)}


def _column(rows: Pairs, ids: Sequence[str], name: str) -> list[Any]:
    return [rows[i][name] for i in ids]


def _probabilities(rows: Pairs, ids: Sequence[str], scheme: Scheme) -> np.ndarray:
    return np.array(_column(rows, ids, "probabilities"), dtype=float).reshape(len(ids), len(scheme.codes))


def _metrics(pairs: Pairs, ids: Sequence[str], answers: Pairs, scheme: Scheme) -> dict[str, Any]:
    """Return all metrics of one judge's answers to the pairs `ids`."""
    gold, queries = _column(pairs, ids, "label"), _column(pairs, ids, "query_id")
    return evaluate(gold, _probabilities(answers, ids, scheme), queries, scheme, _column(answers, ids, "label"))


def conclusions(found: Mapping[str, Any]) -> list[str]:
    """Return the conclusions that the numbers allow, as sentences."""
    if not found["pairs"]:
        return ["No test pair was answered by every judge, so nothing can be compared."]
    small = []
    if found["queries"] < FEWEST_QUERIES:
        small = [
            f"This run is too small to judge quality: of {found['pairs']} test pairs of {found['queries']} queries, one"
            f" pair is worth {100 / found['pairs']:.1f} points of accuracy. Take what follows as how a report looks."
        ]
    said = [_difference(metric, found["differences"][metric]) for metric in METRICS if found["differences"]]
    if not said:
        said = [
            "No student was trained on labels only (student.baseline = false): there is nothing to compare LRKD with."
        ]
    said = small + said + [_beside_majority(name, found["judges"]) for name in ("teacher", "lrkd")]
    said.append(
        f"These are {found['pairs']} pairs of {found['queries']} queries and one seed: what varies between seeds comes"
        " on top of the intervals."
    )
    if found["pairs"] < found["test_pairs"]:
        said.append(
            f"{found['test_pairs'] - found['pairs']} of {found['test_pairs']} test pairs are left out, because not"
            " every judge answered them."
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
    """Return the trained teacher's metrics on test: of each perspective where it answered, and of the vote."""
    test = {i: row for i, row in judged.items() if pairs[i]["split"] == "test"}
    answers = {
        name: {
            i: {"label": row["verdicts"][p], "probabilities": row["perspective_soft"][p]}
            for i, row in test.items()
            if row["verdicts"][p] is not None
        }
        for p, name in enumerate(names)
    }
    answers["vote"] = {i: {"label": row["vote"], "probabilities": row["soft"]} for i, row in test.items()}
    return [{"name": name, **_metrics(pairs, list(rows), rows, scheme)} for name, rows in answers.items()]


def stages_of_teacher(
    pairs: Pairs, judged: Pairs, answers: Mapping[str, Mapping[str, Rows]], names: Sequence[str]
) -> Rows:
    """Return the quality of the untrained model, of the SFT model and of the trained teacher, by split and perspective.

    All of them are judged on the pairs that the untrained model answered. Dev and test pairs were not trained on. A
    teacher without DPO is the SFT model, and one without any training has no rows.
    """
    said = {stage: _verdicts(found) for stage, found in answers.items()}
    if "2-rationales" not in said:
        return []
    final = [(i, name, v) for i, row in judged.items() for name, v in zip(names, row["verdicts"], strict=True) if v]
    asked = {(i, name) for i, name, _ in said["2-rationales"]}
    sampled = {"sft": said["4-samples"], "dpo": final} if "4-samples" in said else {"sft": final}
    models = {"untrained": said["2-rationales"], **sampled}
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
                row[model] = {"answers": len(here), **label_metrics([g for g, _ in here], [v for _, v in here])}
            if row["untrained"]["answers"]:
                rows.append(row)
    return rows


def _verdicts(found: Mapping[str, Rows]) -> list[tuple[str, str, str]]:
    """Return pair, perspective and verdict of every answer with a verdict, kept or filtered."""
    rows = [*found["kept"], *found["filtered"]]
    return [(row["pair_id"], row["perspective"], row["verdict"]) for row in rows if row["verdict"] is not None]


def agreement(pairs: Pairs, judged: Pairs, names: Sequence[str]) -> dict[str, Any]:
    """Return how often two perspectives of the trained teacher give a test pair that both judged the same verdict."""
    verdicts = [row["verdicts"] for i, row in judged.items() if pairs[i]["split"] == "test"]
    places = range(len(names))

    def share(same: list[bool]) -> float | None:
        return float(np.mean(same)) if same else None

    matrix = [[share([v[a] == v[b] for v in verdicts if v[a] and v[b]]) for b in places] for a in places]
    unanimous = share([len(set(v)) == 1 for v in verdicts if all(v)])
    return {"names": list(names), "matrix": matrix, "pairs": len(verdicts), "unanimous": unanimous}
