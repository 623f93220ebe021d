"""The commands `broadfast batch write` and `batch read`, for models that are asked offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from cluster.base.progress import console
from workflows.terminal import clear_errors

RunDir = Annotated[Path, typer.Argument(help="a run folder", metavar="RUN_DIR")]


def add_batches(app: typer.Typer) -> None:
    """Add these commands to the command `broadfast`."""
    batch = typer.Typer(help="Ask offline, with files in the format of OpenAI's batch API.", no_args_is_help=True)
    batch.command("write")(write)
    batch.command("read")(read)
    app.add_typer(batch, name="batch")


def write(
    run_dir: RunDir,
    out: Annotated[
        Optional[Path],
        typer.Option("--out", metavar="FILE.jsonl", help="the file to write; by default in RUN_DIR/batches"),
    ] = None,
) -> None:
    """Write the requests that the next stage of a run lacks as JSONL, and what they may cost."""
    from workflows.behind_address import write_requests

    with clear_errors():
        said, files = write_requests(run_dir, out)
        for line in (said, *(f"{path}: {count:,} requests" for path, count in files.items())):
            console().print(line, highlight=False)


def read(
    run_dir: RunDir, file: Annotated[Path, typer.Argument(help="answers of the host", metavar="FILE.jsonl")]
) -> None:
    """Take answers into the stage that lacks them; `broadfast run` asks for the rest."""
    from mpcot.asking.address.batch import said_of
    from workflows.behind_address import read_answers

    with clear_errors():
        stage, found = read_answers(run_dir, file)
        for line in said_of(found):
            console().print(f"{stage}: {line}", highlight=False)
