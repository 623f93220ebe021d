"""The command `broadfast candidates`: further pairs of a run's queries and products, for the teacher to judge."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer

from cluster.base.progress import console
from cluster.base.run_folder import saved_config
from workflows.config import validate
from workflows.serve_commands import Verbose
from workflows.terminal import LOG, clear_errors, quiet


def add_candidates(app: typer.Typer) -> None:
    """Add the command to `broadfast`."""
    app.command()(candidates)


def candidates(
    run_dir: Annotated[Path, typer.Argument(help="a run folder with finished pairs", metavar="RUN_DIR")],
    per_query: Annotated[int, typer.Option("--per-query", min=1, metavar="N", help="the most pairs of one query")],
    results: Annotated[
        Optional[Path],
        typer.Option(
            metavar="TABLE", help="results of your search engine: query, product_id, rank if known; else they are mined"
        ),
    ] = None,
    products: Annotated[
        Optional[Path],
        typer.Option(metavar="TABLE", help="the whole catalogue, with columns as pairs have; else the run's products"),
    ] = None,
    random_share: Annotated[float, typer.Option(min=0, max=1, help="share of N that is random, when mining")] = 0.2,
    unsure_by: Annotated[
        Optional[Path],
        typer.Option(metavar="STUDENT_DIR", help="pairs on which this student is unsure come first"),
    ] = None,
    judged: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help="judgements of some pairs: where they contradict the student comes first"),
    ] = None,
    out: Annotated[
        Optional[Path],
        typer.Option("--out", metavar="FILE", help="the file to write; by default RUN_DIR/candidates.parquet"),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Write unlabelled pairs for source.candidates: products for training queries that nobody has judged for them."""
    from cluster.base.ray_session import ray_session
    from distill.candidates.write import Wish, write_candidates
    from mpcot.schemes.scheme import load_scheme
    from mpcot.sources.open_source import cleaning_of

    path = out or run_dir / "candidates.parquet"
    with clear_errors(run_dir / LOG):
        config = validate(saved_config(run_dir), str(run_dir / "config.json"))
        cleaning = cleaning_of(config.source, load_scheme(config.labels.scheme))
        wish = Wish(per_query, random_share, config.seed, results, products, unsure_by, judged)
        with quiet(None if verbose else run_dir / LOG):
            session = partial(ray_session, config.cluster)
            found, left_out = write_candidates(run_dir, path, wish, cleaning, config.targets, session)
    _say(path, found, left_out)


def _say(path: Path, found: Counter[str], left_out: Counter[str]) -> None:
    """Print what was written, what was left out, and what to do with it."""
    said = ", ".join(f"{count:,} of {origin}" for origin, count in found.most_common())
    console().print(f"{path}: {said}", highlight=False)
    if left_out:
        reasons = "; ".join(f"{reason}: {count:,}" for reason, count in left_out.most_common())
        console().print(f"left out: {reasons}", highlight=False)
    console().print(f"Use them by source.candidates = {str(path)!r} in a config.", highlight=False)
