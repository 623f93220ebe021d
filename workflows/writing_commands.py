"""The commands that write what a run's teacher said into files for other runs: seeds and judgements."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from cluster.base.errors import UsageError
from cluster.base.progress import console
from workflows.config import load_config
from workflows.serve_commands import Changes, Verbose
from workflows.terminal import clear_errors


def add_writing(app: typer.Typer, run: Callable[..., Any]) -> None:
    """Add the two commands. `run` runs stages, since `judgements` is also the name of one."""

    @app.command()
    def seeds(
        run_dir: Annotated[Path, typer.Argument(help="a run folder", metavar="RUN_DIR")],
        path: Annotated[Path, typer.Argument(help="the file to write", metavar="FILE.jsonl")],
        origin: Annotated[
            Optional[str], typer.Option(metavar="NAME", help="who wrote them; by default the teacher's name")
        ] = None,
    ) -> None:
        """Write the rationales of a run's teacher as seeds, for source.seeds of another run."""
        from mpcot.write_seeds import write_seeds

        with clear_errors():
            counts = write_seeds(run_dir, path, origin)
            said = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
            console().print(f"{path}: {said}", highlight=False)

    @app.command(rich_help_panel="Single stages")
    def judgements(
        place: Annotated[Path, typer.Argument(help="a TOML config, or a run folder", metavar="CONFIG.toml|RUN_DIR")],
        path: Annotated[
            Optional[Path], typer.Argument(help="the file to write of a run folder", metavar="FILE.jsonl")
        ] = None,
        changes: Changes = None,
        out: Annotated[Optional[Path], typer.Option("--out", metavar="DIR", help="the run folder")] = None,
        verbose: Verbose = False,
    ) -> None:
        """Run the stage judgements, or write a run's judgements as a file for source.judgements of another run."""
        from mpcot.write_judgements import write_judgements

        with clear_errors():
            if path is not None:
                said = ", ".join(f"{count:,} of {origin}" for origin, count in write_judgements(place, path).items())
                console().print(f"{path}: {said}", highlight=False)
                return
            if place.is_dir():
                raise UsageError(f"{place} is a folder: name the file to write its judgements to after it")
            settings = load_config(place, changes or ())
        run(settings, out, "judgements", "judgements", False, False, verbose)
