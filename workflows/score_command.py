"""The command `broadfast score`: a student's scores of a whole table of pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from cluster.base.errors import UsageError
from cluster.base.progress import console
from workflows.config import BulkConfig, bulk_config
from workflows.serve_commands import Changes, Verbose
from workflows.terminal import clear_errors, quiet

LOG = Path("runs") / "score.log"


def add_score(app: typer.Typer) -> None:
    """Add the command to `broadfast`."""
    app.command()(score)


def score(
    export_dir: Annotated[
        Path, typer.Argument(help="an export folder, such as RUN_DIR/10-export", metavar="EXPORT_DIR")
    ],
    table: Annotated[
        str, typer.Argument(help="pairs: parquet, csv, tsv or jsonl; a file, folder or URI", metavar="FILE")
    ],
    out: Annotated[
        str, typer.Option("--out", metavar="PLACE", help="FILE.parquet, or a folder for parts, which may be a URI")
    ],
    config: Annotated[
        Optional[Path],
        typer.Option("--config", help="the config of a run, or one with the sections source, bulk and cluster alone"),
    ] = None,
    changes: Changes = None,
    latents: Annotated[bool, typer.Option("--latents", help="write the latent vectors, too")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="write the nearest rationales, too")] = False,
    submit: Annotated[
        Optional[str],
        typer.Option(metavar="http://HEAD:8265", help="run as a job on the Ray cluster with this dashboard"),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="with --submit, follow the log to the end")] = True,
    verbose: Verbose = False,
) -> None:
    """Score a table of pairs: label, score, probabilities and verdicts. The same call goes on after an interruption."""
    with clear_errors():
        settings = bulk_config(config, table, changes or ())
        flags = [flag for flag, given in (("--latents", latents), ("--explain", explain)) if given]
        if submit is not None:
            from workflows.submit import plan_scoring
            from workflows.submit import submit as send

            job = plan_scoring(export_dir, table, out, config, changes or (), flags)
            raise typer.Exit(send(submit, job, wait))
        _check_place(out)
    with clear_errors(LOG), quiet(None if verbose else LOG):
        _score(export_dir, settings, out, latents, explain)


def _check_place(out: str) -> None:
    if "://" in out and out.endswith(".parquet"):
        raise UsageError(f"--out {out}: one file is joined on a local disk only. Name a folder for its parts.")
    if Path(out).is_dir() and out.endswith(".parquet"):
        raise UsageError(f"--out {out} is a folder. Name a file, or a folder whose name does not end in .parquet.")


def _score(export_dir: Path, settings: BulkConfig, out: str, latents: bool, explain: bool) -> None:
    from cluster.base.ray_session import ray_session
    from cluster.base.shared_folder import SharedFolder
    from serve.bulk.output import FAILED, Wish, join_parts
    from serve.bulk.score import score_table

    one = Path(out) if out.endswith(".parquet") else None
    parts = SharedFolder.at(f"{out}.parts" if one else out)
    with ray_session(settings.cluster):
        found, names = score_table(export_dir, settings.source, parts, settings.bulk, Wish(latents, explain))
        if one:
            join_parts(parts, list(names), one)
    console().print(f"{out}: {found.scored:,} rows scored, {found.new:,} of them now", highlight=False)
    if found.failed:
        reasons = "; ".join(f"{reason}: {count:,}" for reason, count in found.failed.most_common())
        where = one.with_suffix(".failed.parquet") if one else f"{out}/{FAILED}"
        console().print(f"failed: {reasons}; see {where}", highlight=False)
