"""Prints what `collect` has gathered: the numbers as tables, and a few conflicts and samples as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from cluster.pages.html import percent

PAIRS_SHOWN = 2


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print every finished stage. Texts of the data are never read as markup."""
    for stage, why in found["missing"].items():
        console.print(Text(f"{stage} {why}", style="dim"))
    for stage in found["stages"]:
        console.print(_stage(stage, found["perspectives"]), soft_wrap=False)


def _stage(stage: Mapping[str, Any], names: list[str]) -> RenderableType:
    tables = [_kept(stage, names), _agreement(stage, names), _lengths(stage), *_reasons(stage)]
    parts: list[RenderableType] = [
        Rule(f"{stage['title']} ({stage['stage']})"),
        _headline(stage),
        *(Text(f"! {said}", style="yellow") for said in stage["findings"]),
        Columns(tables, padding=(1, 3)),
    ]
    conflicts = stage["conflicts"][:PAIRS_SHOWN]
    others = [pair for pair in stage["samples"] if pair not in conflicts][:PAIRS_SHOWN]
    for title, pairs in (("Conflicts", conflicts), ("Samples", others)):
        parts += [Text(title, style="bold"), *map(_pair, pairs)] if pairs else []
    return Group(*parts)


def _headline(stage: Mapping[str, Any]) -> Text:
    counts, words, accuracy = stage["counts"], stage["words"], stage["accuracy"]
    said = f"{counts['asked']:,} answers on {counts['pairs']:,} pairs: {counts['kept']:,} {words['kept']}, "
    said += f"{counts['filtered']:,} {words['filtered']}, {counts['failed']:,} failed. "
    said += f"{counts['covered_pairs']:,} of {counts['gold_pairs']:,} pairs have one that is {words['kept']}."
    if accuracy["all"] is not None:
        majority = accuracy["majority"]
        said += f" Verdicts are right on {percent(accuracy['all'])} (always {majority['label']}: "
        said += f"{percent(majority['share'])})."
    if grounds := stage["grounded"]["looked_at"]:
        share = percent(stage["grounded"]["ungrounded"] / grounds)
        said += f" Of {grounds:,} rationales, {share} name what neither query nor product has."
    if stage["hinted"]:
        said += f" Hinted, not counted: {stage['hinted']['kept']:,} of {stage['hinted']['asked']:,} kept."
    if stage["usage"]:
        said += f" Billed: {stage['usage']}."
    return Text(said)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


def _kept(stage: Mapping[str, Any], names: list[str]) -> Table:
    table = _table(f"{stage['words']['kept']} by gold label", "gold", *names, "all")
    width = len(names) + 1
    for start in range(0, len(stage["kept"]), width):
        row = stage["kept"][start : start + width]
        cells = (percent(c["kept"] / c["asked"] if c["asked"] else None) + f" of {c['asked']:,}" for c in row)
        table.add_row(row[0]["label"], *cells)
    return table


def _agreement(stage: Mapping[str, Any], names: list[str]) -> Table:
    agreement = stage["agreement"]
    table = _table(f"agreement, {agreement['conflicts']:,} of {agreement['pairs']:,} pairs in conflict", "", *names)
    for name, row in zip(names, agreement["matrix"], strict=True):
        table.add_row(name, *map(percent, row))
    return table


def _lengths(stage: Mapping[str, Any]) -> Table:
    table = _table("characters of a rationale", "", "least", "5 %", "median", "95 %", "most")
    for name, row in stage["lengths"]["perspectives"].items():
        table.add_row(name, *map(str, row["quantiles"]))
    return table


def _reasons(stage: Mapping[str, Any]) -> list[Table]:
    tables = []
    for title, reasons in (
        (stage["words"]["filtered"], stage["reasons"]["filtered"]),
        ("failed", stage["reasons"]["failed"]),
    ):
        table = _table(f"why {title}", "reason", "answers")
        for reason, count in reasons.items():
            table.add_row(Text(reason), f"{count:,}")
        if reasons:
            tables.append(table)
    return tables


def _pair(pair: Mapping[str, Any]) -> Panel:
    table = Table(box=None, expand=True, padding=(0, 2, 0, 0))
    for view in pair["views"]:
        right = view["verdict"] == pair["label"]
        mark = "" if pair["label"] is None or view["verdict"] is None else " ✓" if right else " ✗"
        head = Text(f"{view['name']}: {view['verdict'] or 'no answer'}{mark}", style="green" if right else "red")
        table.add_column(head, ratio=1)
    table.add_row(*(Text(view["rationale"] or "no rationale") for view in pair["views"]))
    gold = f"gold {pair['label']}" if pair["label"] else "no gold label"
    return Panel(
        Group(Text(pair["title"], style="dim"), table), title=Text(f"{pair['query']}  ·  {gold}"), title_align="left"
    )
