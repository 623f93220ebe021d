"""What a study's report says in words and in the benchmark's figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.config import LEAST_SKILL
from distill.study.statistics import METRICS, SURE

NAMES = {
    "log_loss": "log-loss",
    "auc": "AUC",
    "macro_f1": "macro-F1",
    "macro_f1_weighed": "weighed macro-F1",
    "accuracy": "accuracy",
}
KINDS = {
    "baseline": "labels only",
    "kl": "soft labels",
    "twin": "the same row with lambda 0",
    "same_verdicts": "the control of the same label and verdicts",
}
OF_WHOLE_ROW = ("baseline", "kl")


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the benchmark's figures: of the subject row of each data set, its name appended, and pooled.

    Gains are in points, but `gain_over_same_verdict` is in nats of log-loss, of the row that has this control.
    `gain_over_kl` and `gain_over_twin` are of macro-F1.
    """
    found: dict[str, float] = {}
    for part in report["data"]:
        rows = by_name(part)
        kinds = {kind: rows[row]["over"][against] for kind, (row, against) in part["references"].items()}
        found |= _figures(kinds, f"_{part['name']}")
    pooled = report["pooled"]
    if not pooled and len(report["data"]) == 1:
        return {name.removesuffix(f"_{report['data'][0]['name']}"): value for name, value in found.items()} | found
    return _figures(pooled, "") | found


def _figures(kinds: Mapping[str, Mapping[str, Any]], end: str) -> dict[str, float]:
    told = (
        ("accuracy_gain", "baseline", "accuracy"),
        ("macro_f1_gain", "baseline", "macro_f1"),
        ("weighed_macro_f1_gain", "baseline", "macro_f1_weighed"),
        ("gain_over_kl", "kl", "macro_f1"),
        ("gain_over_twin", "twin", "macro_f1"),
        ("gain_over_same_verdict", "same_verdicts", "log_loss"),
    )
    found = {}
    for name, kind, metric in told:
        if (one := kinds.get(kind, {}).get(metric)) is not None:
            unit, scale = ("nats", 1) if metric == "log_loss" else ("points", 100)
            found[f"{name}_{unit}{end}"] = scale * one["difference"]
            found[f"{name}_low{end}"] = scale * one["low"]
    return found


def conclusions(report: Mapping[str, Any]) -> list[str]:
    """Return the sentences that the intervals allow: the primary tests first, then others, then the pooled gains."""
    said = []
    for part in report["data"]:
        rows = by_name(part)
        if primary := part["primary"]:
            found = rows[primary["row"]]["over"][primary["against"]][primary["metric"]]
            first, second = (rows[primary[name]]["title"] for name in ("row", "against"))
            said.append(f"{part['name']}, primary test: {sentence(first, second, primary['metric'], found)}")
    for part in report["data"]:
        said += [f"{part['name']}: {one}" for one in of_part(part)]
    for kind, over in report["pooled"].items():
        held = [by_name(p)[p["references"][kind][0]] for p in report["data"] if kind in p["references"]]
        if kind in OF_WHOLE_ROW or all(map(delivers, held)):
            others = [by_name(p)[p["references"][kind][1]] for p in report["data"] if kind in p["references"]]
            reference = KINDS.get(kind) or others[0]["title"]
            told = ((m, over[m]) for m in METRICS if over[m] is not None)
            said += [f"Pooled: {sentence('the tested row', reference, m, found)}" for m, found in told]
    return said


def of_part(part: Mapping[str, Any]) -> list[str]:
    """Return the sentences about the subject row, the row that is best on dev, and rows that have controls.

    Twin and controls are about the rationales, so their sentences need a row whose latent vectors learnt these.
    """
    rows, said = by_name(part), []
    whole = [part["references"][kind][1] for kind in OF_WHOLE_ROW if kind in part["references"]]
    told_of = [subject_of(part)["name"], part["best"], *(row for row, _ in part["references"].values())]
    told_of += [other for _, other in part["references"].values() if rows[other]["alike"]]
    for row in (rows[name] for name in dict.fromkeys(told_of)):
        title = row["title"] + (" (best on dev)" if row["best"] else "")
        for name, over in row["over"].items():
            if name not in whole and not delivers(row):
                continue
            told = ((m, over[m]) for m in METRICS if over[m] is not None and not over[m]["primary"])
            said += [sentence(title, rows[name]["title"], m, found) for m, found in told]
        if not delivers(row):
            skill = "not known" if row["alignment_skill"] is None else f"{row['alignment_skill']:.3f} on dev"
            said.append(
                f"the alignment skill of {title} is {skill}, not {LEAST_SKILL:g} or more, so its latent vectors did "
                "not learn the rationales, and nothing is said of what these are worth."
            )
    return said


def by_name(part: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a data set's rows by name."""
    return {row["name"]: row for row in part["rows"]}


def delivers(row: Mapping[str, Any]) -> bool:
    """Return whether a row's latent vectors learnt the rationales.

    Mean rationales of pairs that are alike differ too little from each other for the skill to say so.
    """
    return row["alike"] or (row["alignment_skill"] is not None and row["alignment_skill"] >= LEAST_SKILL)


def sentence(title: str, reference: str, metric: str, found: Mapping[str, Any]) -> str:
    """Return which of two rows is ahead, that they are equal within the margin, or that the data does not tell."""
    verdict = f"the data does not tell {title} and {reference} apart"
    sure = found["corrected"] < SURE
    if found["equal"]:
        verdict = f"{title} and {reference} are equal within the margin"
    elif found["low"] > 0:
        verdict = f"{title} beats {reference}" if sure else f"{title} may be ahead of {reference}"
    elif found["high"] < 0:
        verdict = f"{title} does worse than {reference}" if sure else f"{title} may be behind {reference}"
    return f"{verdict} in {NAMES[metric]}: {amount(found, metric)}, they differ by less than {bound(found, metric)}."


def comes_first(said: str) -> bool:
    """Return whether a sentence is of a primary test, or says for sure which row is ahead. Pages begin with those."""
    return any(words in said for words in ("primary test: ", " beats ", " does worse than "))


def amount(found: Mapping[str, float], metric: str) -> str:
    """Return e.g. `+1.2 points (-0.3 to +2.8)`, or a gain of log-loss in nats."""
    unit, scale, digits = ("nats", 1, 3) if metric == "log_loss" else ("points", 100, 1)
    difference, low, high = (f"{scale * found[name]:+.{digits}f}" for name in ("difference", "low", "high"))
    return f"{difference} {unit} ({low} to {high})"


def bound(found: Mapping[str, float], metric: str) -> str:
    """Return the bound below which the two rows surely differ."""
    return f"{found['bound']:.3f} nats" if metric == "log_loss" else f"{100 * found['bound']:.1f} points"


def subject_of(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row that the part's figures are of: that of the primary test, or without one the best on dev."""
    return dict(next(row for row in part["rows"] if row["subject"]))
