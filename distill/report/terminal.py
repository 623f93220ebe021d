"""Prints the figures of a finished report, as the end of a run and `broadfast report` do."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.base.stage_folder import read_json
from cluster.pages.html import figure, percent
from distill.report.quality import TITLES
from distill.report.report_page import METRICS


def show_report(folder: Path, console: Console) -> None:
    """Print each judge's metrics and how it errs by label, the ceiling of people, and where the page is."""
    found = read_json(folder / "report.json")["headline"]
    table = Table("on the test split", *METRICS.values())
    for name, row in found["judges"].items():
        table.add_row(TITLES[name], *(figure(row.get(key)) for key in METRICS))
    if found["ceiling"]:
        table.add_row("One person, beside the others", *(figure(found["ceiling"].get(key)) for key in METRICS))
    console.print(table)
    labelled = {name: row["per_label"] for name, row in found["judges"].items() if "per_label" in row}
    errs = Table("rated more / less relevant", *(TITLES[name] for name in labelled))
    for code in found["judges"]["teacher"]["per_label"]:
        sides = ((row[code]["over"], row[code]["under"]) for row in labelled.values())
        errs.add_row(f"gold {code}", *(f"{percent(over)} / {percent(under)}" for over, under in sides))
    console.print(errs)
    console.print(f"report: {folder / 'report.html'}", highlight=False)
