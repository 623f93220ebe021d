"""The folds of a study: every query is tested once, by students that saw neither it nor a query like it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.base.tables import read_table, write_table
from distill.targets.linear_map import refit
from mpcot.pairs.splits import unit_hash
from mpcot.pairs.twins import groups_of
from mpcot.records import PAIR
from mpcot.sources.config import Kept, SplitSettings

Row = dict[str, Any]


def kept_together(run: Mapping[str, Any], header: Mapping[str, Any] | None) -> tuple[Kept, ...]:
    """Return what keeps queries in one fold: what it is for the run's splits, unless runs on other folds are recorded.

    Args:
        run: the run's config.
        header: the header of the records, if they hold runs.
    """
    if header is not None:
        return tuple(header.get("kept_together", ()))
    return SplitSettings(**run.get("split", {})).kept_together


def assign_folds(rows: list[dict[str, Any]], folds: int, seed: int, kept: tuple[Kept, ...] = ()) -> dict[str, int]:
    """Return the fold that tests each query: train and test queries are put in the order of a hash and take turns.

    Dev queries are in no fold, so that nothing is chosen on tested pairs. A single fold is the run's own test split.
    Queries that are kept together are all in the fold of the one with the least id.
    """
    splits = ("test",) if folds == 1 else ("train", "test")
    queries = {row["query_id"] for row in rows if row["split"] in splits}
    return dealt([row for row in rows if row["query_id"] in queries], folds, "fold", seed, kept)


def dealt(rows: list[Row], parts: int, purpose: str, seed: int, kept: tuple[Kept, ...] = ()) -> dict[str, int]:
    """Return the part of each query of the rows: in the order of a hash of `purpose` and `seed` they take turns.

    Queries that are kept together are all in the part of the one with the least id.
    """
    queries = {row["query_id"] for row in rows}
    ordered = sorted(queries, key=lambda query: (unit_hash(purpose, query, seed), query))
    part = {query: i % parts for i, query in enumerate(ordered)}
    groups = groups_of(rows, kept)
    return {query: part[groups.get(query, query)] for query in ordered}


def fold_folder(
    run: Path,
    fold: int,
    folds: int,
    seed: int,
    folder: Path,
    hidden: tuple[float, float] = (0, 0),
    kept: tuple[Kept, ...] = (),
) -> Path:
    """Make `folder` look like a run folder with the fold's split; judgements and targets are links.

    The map that transforms the targets, if the run has one, is fitted anew to the training pairs of the fold.

    Args:
        hidden: share of the queries whose training pairs become unlabelled, and share of those whose unlabelled pairs
            are left out: the same queries in every fold.
    """
    rows = read_table(run / "1-pairs" / "pairs.parquet").to_pylist()
    tested = assign_folds(rows, folds, seed, kept)
    labels, unlabelled = hidden

    def taught(row: Row) -> bool:
        # The unlabelled pairs of a tested query are left out: training on them would show the student that query.
        shown = folds == 1 or tested.get(row["query_id"]) != fold
        return row["label"] is not None or (shown and unit_hash("unlabelled", row["query_id"], seed) >= unlabelled)

    rows = [row for row in rows if taught(row)]
    for row in rows:
        if folds > 1 and row["query_id"] in tested and row["label"] is not None:
            row["split"] = "test" if tested[row["query_id"]] == fold else "train"
        if row["split"] == "train" and unit_hash("hidden", row["query_id"], seed) < labels:
            row |= {"split": "unlabelled", "label": None}
    write_table(folder / "1-pairs" / "pairs.parquet", pa.Table.from_pylist(rows, PAIR))
    (folder / "7-judgements").symlink_to((run / "7-judgements").resolve(), target_is_directory=True)
    (folder / "8-targets").mkdir()
    for path in (run / "8-targets").iterdir():
        (folder / "8-targets" / path.name).symlink_to(path.resolve())
    refit(folder / "8-targets", [row["pair_id"] for row in rows if row["split"] == "train"])
    return folder
