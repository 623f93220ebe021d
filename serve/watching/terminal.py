"""Prints what the teacher says of served labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.pages.html import figure, percent


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print accuracy and macro-F1 with their intervals, and a row for each label that the teacher could give."""
    heads = ("vote", "pairs", *(f"served {code}" for code in found["labels"]), "F1", "over", "under")
    table = Table(*heads, title="the teacher's votes beside the served labels")
    for code, counts in zip(found["labels"], found["confusion"], strict=True):
        own = found["per_label"][code]
        sides = (percent(own[side]) for side in ("over", "under"))
        table.add_row(code, f"{own['pairs']:,}", *(f"{count:,}" for count in counts), figure(own["f1"]), *sides)
    console.print(table)
    for metric, name in (("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
        one = found[metric]
        ends = f"{figure(one['low'])} to {figure(one['high'])}"
        console.print(f"{name} of the served labels: {figure(one['value'])} (95 % interval {ends})", highlight=False)
    said = f"{found['judged']:,} of {found['drawn']:,} drawn pairs judged, {found['queries']:,} queries"
    console.print(f"{said}, answered by {', '.join(found['models'])}", highlight=False)
