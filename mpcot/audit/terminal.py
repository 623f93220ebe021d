"""Prints the disputed pairs as a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.pages.html import figure
from mpcot.audit.corrections import Imported

NAMED = 10  # pairs that a line names


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print the counts and the disputed pairs. Texts of the data are never read as markup."""
    counts = found["counts"]
    said = f"{counts['judged']:,} pairs with a gold label were judged; on {counts['agreed']:,} all perspectives agree, "
    said += f"on {counts['against']:,} against the label, on {counts['disputed']:,} with a score of {found['least']:g} "
    said += "or more."
    if counts["looked_at"]:
        said += f" {counts['looked_at']:,} others were corrected or confirmed before."
    console.print(Text(said))
    if not found["disputes"]:
        return
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("score", "gold", "said", "query", "product", found["perspectives"][0]):
        table.add_column(name, overflow="fold", justify="right" if name == "score" else "left")
    for pair in found["disputes"]:
        first = next(iter(pair["rationales"].values()))
        texts = (pair["gold"], pair["verdict"], pair["query"], _short(pair["title"]), _short(first or ""))
        table.add_row(figure(pair["score"], 2), *map(Text, texts))
    console.print(table)


def show_imported(done: Imported, path: Path, console: Console) -> None:
    """Print what became of corrected labels, and name those that were left out."""
    console.print(Text(f"{path}: {done.changed:,} labels changed, {done.confirmed:,} confirmed"))
    left_out = (("not in this run", done.unknown), ("people disagree", done.undecided))
    for why, pairs in left_out:
        if pairs:
            rest = f" and {len(pairs) - NAMED:,} others" if len(pairs) > NAMED else ""
            console.print(Text(f"left out, {why}: {'; '.join(pairs[:NAMED])}{rest}", style="yellow"))
    console.print(Text(f"Use them by source.overrides = {str(path)!r} in a config."))


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:119]}…"
