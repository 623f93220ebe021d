"""What the numbers of a stage say in sentences: first how it went, then what to look at before going on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.pages.html import percent
from mpcot.config import AnswerSettings

FEW_KEPT = 0.1
ONE_SIDED = 0.2
MANY_FAILED = 0.05
ALL_THE_SAME = 0.95


def findings(stage: Mapping[str, Any], ask: AnswerSettings, section: str) -> list[str]:
    """Return warnings, the gravest first; an empty list where nothing stands out.

    Args:
        stage: one stage of what `collect` gathers.
        ask: how the teacher was asked.
        section: the config section that `ask` comes from, for the way out.
    """
    return [
        *_chance(stage["accuracy"]),
        *_one_sided(stage["accuracy"]),
        *_labels(stage["kept"], section),
        *_failures(stage["counts"], stage["reasons"]["failed"], section),
        *_cut(stage["lengths"], ask, section),
        *_alike(stage["agreement"]),
    ]


def _chance(accuracy: Mapping[str, Any]) -> list[str]:
    right, majority = accuracy["all"], accuracy["majority"]
    if right is None or right > majority["share"]:
        return []
    return [
        f"Verdicts are right on {percent(right)}. Always answering {majority['label']} would be right on "
        f"{percent(majority['share'])}: the teacher does not tell the labels apart yet. Seed rationales, worked "
        "examples (few_shot) or a larger teacher help."
    ]


def _one_sided(accuracy: Mapping[str, Any]) -> list[str]:
    verdict, majority = accuracy["verdict"], accuracy["majority"]
    if verdict is None or majority is None or verdict["share"] < majority["share"] + ONE_SIDED:
        return []
    return [
        f"{percent(verdict['share'])} of the verdicts are {verdict['label']}, while no gold label has more than "
        f"{percent(majority['share'])} of the pairs."
    ]


def _labels(kept: Sequence[Mapping[str, Any]], section: str) -> list[str]:
    rows = [c for c in kept if c["perspective"] == "all" and c["label"] != "all" and c["asked"]]
    poor = [f"{c['label']} {c['kept']} of {c['asked']}" for c in rows if c["kept"] < FEW_KEPT * c["asked"]]
    if not poor or section == "judge":
        return []
    return [f"Few answers reach the gold label of {', '.join(poor)}. {section}.samples or few_shot bring more."]


def _failures(counts: Mapping[str, int], failed: Mapping[str, int], section: str) -> list[str]:
    if counts["failed"] <= MANY_FAILED * counts["asked"]:
        return []
    reason, times = next(iter(failed.items()))
    way_out = f" Raise {section}.max_tokens or lower {section}.max_chars." if reason.startswith("too long") else ""
    share = percent(counts["failed"] / counts["asked"])
    return [f"{share} of the answers failed, {times:,} of them as “{reason}”.{way_out}"]


def _cut(lengths: Mapping[str, Any], ask: AnswerSettings, section: str) -> list[str]:
    long = [name for name, row in lengths["perspectives"].items() if row["quantiles"][3] >= ask.max_chars]
    if not long:
        return []
    return [
        f"At least 5 % of the rationales of {', '.join(long)} end at {section}.max_chars ({ask.max_chars}), "
        "perhaps in mid-sentence."
    ]


def _alike(agreement: Mapping[str, Any]) -> list[str]:
    if agreement["unanimous"] is None or agreement["unanimous"] < ALL_THE_SAME:
        return []
    return [
        f"The perspectives agree on {percent(agreement['unanimous'])} of the pairs: they add little to one another, "
        "and leave few conflicts to learn preferences from."
    ]
