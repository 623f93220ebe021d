"""What becomes of the rows of a source: their ids, corrected labels, duplicates and splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from cluster.base.errors import UserError
from mpcot.pairs.ids import pair_id, query_id
from mpcot.pairs.overrides import correct, read_overrides
from mpcot.pairs.splits import QuerySplits, split_queries
from mpcot.schemes.scheme import Scheme
from mpcot.sources.clean_rows import reason_of
from mpcot.sources.config import PairsStage, TableSource
from mpcot.sources.open_source import cleaning_of

Row = dict[str, Any]  # the columns KEYS of a source row, then query_id and pair_id
KEYS = ["source_row", "query", "product_id", "locale", "label", "split", "error"]
HELD_OUT = "unlabelled row of a held-out query"
KNOWN = "candidate that the source has already"
NO_FAULT = (HELD_OUT, KNOWN)  # these rows are left out, but the data is not at fault


def identify(rows: list[Row], own: int, config: PairsStage, scheme: Scheme) -> dict[str, Any] | None:
    """Give each good row its ids and, if people have corrected it, its label; then set the error of all duplicates.

    Returns: what became of the corrections, or None without any.

    Args:
        own: the number of the source's own rows; those after them are candidates.

    Raises:
        UserError: `source.overrides` cannot be used.
    """
    for row in rows:
        if not row["error"]:
            row["query_id"] = query_id(row["locale"], row["query"])
            row["pair_id"] = pair_id(row["locale"], row["query"], row["product_id"])
    corrected = _corrected(rows, config, scheme)
    _fail_duplicates(rows, own)
    return corrected


def _corrected(rows: list[Row], config: PairsStage, scheme: Scheme) -> dict[str, Any] | None:
    """Put corrected labels in the place of the source's own; return what became of them, or None without any."""
    if config.source.overrides is None:
        return None
    return correct(rows, read_overrides(config.source.overrides, cleaning_of(config.source, scheme)))


def _fail_duplicates(rows: Iterable[Row], own: int) -> None:
    """Keep one row per pair, the first one with a label. If rows have different labels, all of them fail.

    Args:
        own: the number of the source's own rows; those after them are candidates.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if not row["error"]:
            groups[row["pair_id"]].append(row)
    for group in groups.values():
        labels = sorted({row["label"] for row in group if row["label"] is not None})
        kept = None if len(labels) > 1 else next((row for row in group if row["label"]), group[0])
        for row in group:
            if kept is None:
                row["error"] = f"conflicting labels: {', '.join(labels)} for one query and product"
            elif row is not kept and row["source_row"] >= own > kept["source_row"]:
                row["error"] = f"{KNOWN}: in source row {kept['source_row']}"
            elif row is not kept:
                row["error"] = f"duplicate: of source row {kept['source_row']}"


def reasons(failed: Iterable[Row]) -> dict[str, int]:
    """Return how often rows failed for each reason, the most frequent first."""
    return dict(Counter(reason_of(row["error"]) for row in failed).most_common())


def refuse_failed(rows: list[Row], config: PairsStage) -> None:
    """Stop where there are no rows, or too many of them failed, so that the user can look at them.

    Raises:
        UserError: says why they failed.
    """
    where = str(getattr(config.source, "path", config.source.kind))
    if not rows:
        raise UserError(f"source: {where} has no rows. Check the file and source.locales")
    failed = [row for row in rows if row["error"]]
    share = sum(reason_of(row["error"]) not in NO_FAULT for row in failed) / len(rows)
    said = "; ".join(f"{reason}: {count}" for reason, count in reasons(failed).items())
    if len(failed) == len(rows):
        raise UserError(f"source: all {len(rows)} rows of {where} failed ({said}). Correct the data")
    if share > config.source.max_failed_share:
        raise UserError(
            f"source: {len(failed)} of {len(rows)} rows of {where} failed ({said}), more than "
            f"source.max_failed_share = {config.source.max_failed_share}. See failed.parquet; correct "
            "the data or raise that share"
        )


def assign_splits(rows: list[Row], config: PairsStage) -> None:
    """Set the `split` of every good row. Rows without a label, or whose label is not used, are unlabelled.

    Raises:
        UserError: no row has a label, a query is in two splits, or there are too few queries.
    """
    good = [row for row in rows if not row["error"]]
    given: dict[str, set[str]] = defaultdict(set)
    for row in good:
        if row["label"] is not None and row["split"] != "unlabelled":
            given[row["query_id"]] |= {row["split"]} if row["split"] else set()
    if not given and good:
        advice = "Name your column in source.columns.label" if isinstance(config.source, TableSource) else "Add some"
        raise UserError(f"source: no row has a label, which training needs. {advice}")
    dealt = split_queries(given, config.split, config.seed)
    if dealt.in_two and config.split.query_in_two_splits == "stop":
        raise UserError(_two_splits(dealt, good))
    for row in good:
        _assign(row, dealt)


def _assign(row: Row, dealt: QuerySplits) -> None:
    split = dealt.splits.get(row["query_id"], "unlabelled")
    bare = row["label"] is None or row["split"] == "unlabelled"
    if row["query_id"] in dealt.in_two:
        row["error"] = "query in two splits"
    elif bare and split in ("dev", "test"):
        row["error"] = f"{HELD_OUT}: its query is in the {split} split"
    else:
        row["split"] = "unlabelled" if bare else split
        row["label"] = None if row["split"] == "unlabelled" else row["label"]


def _two_splits(dealt: QuerySplits, rows: Iterable[Row]) -> str:
    names = sorted({row["query"] for row in rows if row["query_id"] in dealt.in_two})
    shown = ", ".join(repr(name) for name in names[:5]) + (" ..." if len(names) > 5 else "")
    return (
        f"source column split: {len(names)} queries are in two splits: {shown}. A query must be in one; "
        "correct the column, leave it out, or set split.query_in_two_splits = 'fail' to fail their rows"
    )
