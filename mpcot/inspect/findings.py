"""Says in sentences what in the numbers of a stage deserves a look before the next stage is run."""

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
    """Return warnings, the gravest first; none if nothing stands out.

    Args:
        stage: the numbers of one stage, from `collect`.
        ask: how the teacher was asked.
        section: the section of the config that `ask` comes from.
    """
    found = (
        _no_better_than_chance(stage["accuracy"]),
        _one_sided(stage["accuracy"]),
        _few_kept(stage["kept"], section),
        _many_failed(stage["counts"], stage["reasons"]["failed"], section),
        _cut_off(stage["lengths"], ask, section),
        _all_the_same(stage["agreement"]),
    )
    return [text for text in found if text]


def drawn(looked_at: int, total: int) -> list[str]:
    """Return the sentence that says that not all answers are in the numbers, if that is so."""
    if looked_at >= total:
        return []
    return [f"All numbers are of {looked_at:,} of {total:,} answers, those about pairs that were drawn by a hash."]


def _no_better_than_chance(accuracy: Mapping[str, Any]) -> str | None:
    right, majority = accuracy["all"], accuracy["majority"]
    if right is None or right > majority["share"]:
        return None
    return (
        f"Verdicts are right on {percent(right)}. Always answering {majority['label']} would be right on "
        f"{percent(majority['share'])}: the teacher does not tell the labels apart yet. Seed rationales, worked "
        "examples (few_shot) or a larger teacher help."
    )


def _one_sided(accuracy: Mapping[str, Any]) -> str | None:
    verdict, majority = accuracy["verdict"], accuracy["majority"]
    if verdict is None or majority is None or verdict["share"] < majority["share"] + ONE_SIDED:
        return None
    return (
        f"{percent(verdict['share'])} of the verdicts are {verdict['label']}, while no gold label has more than "
        f"{percent(majority['share'])} of the pairs."
    )


def _few_kept(kept: Sequence[Mapping[str, Any]], section: str) -> str | None:
    rows = [c for c in kept if c["perspective"] == "all" and c["label"] != "all" and c["asked"]]
    poor = [f"{c['label']} {c['kept']} of {c['asked']}" for c in rows if c["kept"] < FEW_KEPT * c["asked"]]
    if not poor or section == "judge":
        return None
    return f"Few answers reach the gold label of {', '.join(poor)}. {section}.samples or few_shot bring more."


def _many_failed(counts: Mapping[str, int], failed: Mapping[str, int], section: str) -> str | None:
    if counts["failed"] <= MANY_FAILED * counts["asked"]:
        return None
    reason, times = next(iter(failed.items()))
    way_out = f" Raise {section}.max_tokens or lower {section}.max_chars." if reason.startswith("too long") else ""
    share = percent(counts["failed"] / counts["asked"])
    return f"{share} of the answers failed, {times:,} of them as “{reason}”.{way_out}"


def _cut_off(lengths: Mapping[str, Any], ask: AnswerSettings, section: str) -> str | None:
    long = [name for name, row in lengths["perspectives"].items() if row["quantiles"][3] >= ask.max_chars]
    if not long:
        return None
    return (
        f"At least 5 % of the rationales of {', '.join(long)} end at {section}.max_chars ({ask.max_chars}), "
        "perhaps in mid-sentence."
    )


def _all_the_same(agreement: Mapping[str, Any]) -> str | None:
    if agreement["unanimous"] is None or agreement["unanimous"] < ALL_THE_SAME:
        return None
    return (
        f"The perspectives agree on {percent(agreement['unanimous'])} of the pairs: they add little to one another, "
        "and leave few conflicts to learn preferences from."
    )
