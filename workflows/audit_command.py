"""The command `broadfast audit`: shows labels that the teacher disputes, and takes corrected ones back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from cluster.base.progress import console
from mpcot.audit.disputes import CONFIDENT
from workflows.terminal import clear_errors


def add_audit(app: typer.Typer) -> None:
    """Add the command to `broadfast`."""
    app.command()(audit)


def audit(
    run_dir: Annotated[Path, typer.Argument(help="a run folder", metavar="RUN_DIR")],
    top: Annotated[int, typer.Option("--top", min=1, help="how many disputed labels to show")] = 30,
    least: Annotated[
        float, typer.Option("--least", min=0, max=1, help="the least score: probability against the gold label")
    ] = CONFIDENT,
    out: Annotated[
        Optional[Path], typer.Option("--out", metavar="DIR", help="where to write; by default RUN_DIR/audit")
    ] = None,
    corrected: Annotated[
        Optional[Path],
        typer.Option("--import", metavar="FILE", help="a Label Studio export or a table of corrected labels"),
    ] = None,
) -> None:
    """Show the labels that all perspectives dispute, as table, page and Label Studio tasks; or import corrections."""
    from mpcot.audit.audit_data import JudgedRun, collect
    from mpcot.audit.audit_page import write_page
    from mpcot.audit.corrections import OVERRIDES, import_corrections
    from mpcot.audit.label_studio import write_tasks
    from mpcot.audit.terminal import show, show_imported

    folder = out or run_dir / "audit"
    with clear_errors():
        run = JudgedRun.open(run_dir)
        if corrected is not None:
            show_imported(import_corrections(run, corrected, folder / OVERRIDES), folder / OVERRIDES, console())
            return
        found = collect(run, top, least)
        page, tasks = write_page(found, folder), write_tasks(found, folder)
    show(found, console())
    console().print(f"page: {page}\ntasks: {tasks}", highlight=False)
