"""The command `broadfast check-source`: what stage 1 will read, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cluster.base.progress import console
from mpcot.pairs.overlap import overlap_warning
from mpcot.pairs.preview import SHOWN, Preview, preview
from mpcot.sources.config import PairsStage
from workflows.config import load_config
from workflows.serve_commands import Changes
from workflows.stages import find_stage
from workflows.terminal import clear_errors

ROWS = 10
TEXT_CHARS = 60


def add_check_source(app: typer.Typer) -> None:
    """Add the command to `broadfast`."""
    app.command("check-source")(check_source)


def check_source(
    config: Annotated[Path, typer.Argument(help="a TOML config", metavar="CONFIG.toml")],
    changes: Changes = None,
) -> None:
    """Show columns, first rows, labels, splits, and what will fail; exit with 1 if the run would stop."""
    with clear_errors():
        settings = find_stage("pairs").settings(load_config(config, changes or ()))
        assert isinstance(settings, PairsStage)
        seen = preview(settings, ROWS)
    _print(seen)
    if seen.problem:
        console().print(f"[bold red]the run would stop:[/bold red] {escape(seen.problem)}", highlight=False)
        raise typer.Exit(1)


def _print(seen: Preview) -> None:
    for first, count, form, columns in seen.files:
        more = f" and {count - 1} more" if count > 1 else ""
        _show(f"{first}{more}: {form}", ["column", "type"], columns.items())
    if seen.likely:
        console().print("missing columns that may be there under another name:", highlight=False)
        console().print("[source.columns]", markup=False, highlight=False)
        for ours, theirs in seen.likely.items():
            console().print(f'{ours} = "{theirs}"', markup=False, highlight=False)
    if not seen.read:
        return
    rows = ([row["source_row"], *(row[name] for name in SHOWN), row["error"] or ""] for row in seen.rows)
    _show(f"the first of {seen.read:,} rows", ["row", *SHOWN, "why it will fail"], rows)
    if seen.failed:
        reasons = ([f"{count:,}", reason, _named(first)] for reason, (count, first) in seen.failed.items())
        _show("rows that will fail", ["rows", "why", "the first"], reasons)
    good = sum(seen.labels.values())
    labels = ([label or "(none)", f"{count:,}", f"{count / good:.1%}"] for label, count in seen.labels.items())
    _show("labels of the others", ["label", "rows", "share"], labels)
    now = seen.overlap.get("now", {})
    queries = ([split, f"{count:,}", *_learnt_too(now.get(split))] for split, count in seen.queries.items())
    _show("queries", ["split", "queries", "of them learnt from as well", "of their products"], queries)
    if seen.overlap and (said := overlap_warning(seen.overlap)):
        console().print(f"warning: {said}", style="yellow", highlight=False)


def _learnt_too(overlap: dict[str, float] | None) -> list[str]:
    return [f"{overlap[name]:.1%}" for name in ("queries", "products")] if overlap else ["", ""]


def _named(row: dict[str, object]) -> str:
    return f"row {row['source_row']}: {row['error']}"


def _show(title: str, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    console().print(title, markup=False, highlight=False)  # the title of a table would break where the table ends
    table = Table(*names)
    for row in rows:
        table.add_row(*(escape(_short(value)) for value in row))
    console().print(table)


def _short(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= TEXT_CHARS else f"{text[:TEXT_CHARS]}…"
