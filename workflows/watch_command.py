"""The command `broadfast watch`: the teacher judges a sample of what a service has answered."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Optional

import typer

from cluster.base.progress import console
from workflows.serve_commands import Verbose
from workflows.terminal import LOG, clear_errors, quiet

SERIES = "watch.jsonl"


def add_watch(app: typer.Typer) -> None:
    """Add the command to `broadfast`."""
    app.command()(watch)


def watch(
    run_dir: Annotated[Path, typer.Argument(help="the run folder whose teacher judges", metavar="RUN_DIR")],
    log: Annotated[Path, typer.Argument(help="the folder of serve.answer_log", metavar="ANSWERS")],
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="how many pairs to draw")] = 200,
    hours: Annotated[float, typer.Option("--hours", min=0, help="of how many hours until now")] = 24.0,
    model: Annotated[
        Optional[str], typer.Option(metavar="NAME", help="the model to judge; by default that of the latest answer")
    ] = None,
    out: Annotated[
        Optional[Path], typer.Option("--out", metavar="DIR", help="where to judge; by default RUN_DIR/watch/DATE")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Let the teacher judge a sample of logged answers: how often the served label is the teacher's vote."""
    from mpcot.schemes.scheme import load_scheme
    from serve.watching.judged import append_line, figures_of
    from serve.watching.sample import Wish
    from serve.watching.terminal import show
    from workflows.judging import judge_sample, model_to_judge

    now = datetime.now(UTC)
    folder, since = out or run_dir / "watch" / f"{now:%Y-%m-%d}", now - timedelta(hours=hours)
    with clear_errors(run_dir / LOG), quiet(None if verbose else run_dir / LOG):
        wish = Wish(pairs, since, model or model_to_judge(log, folder, since), folder.name)
        config = judge_sample(run_dir, log, folder, wish)
        found = figures_of(folder, load_scheme(config.labels.scheme), config.seed)
        show(found, console())
        series = folder.parent / SERIES
        append_line(series, {"folder": folder.name, "at": now.isoformat(timespec="seconds")} | found)
        console().print(f"series: {series}", highlight=False)
