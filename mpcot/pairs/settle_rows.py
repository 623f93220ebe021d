"""What becomes of the rows of a source: their ids, corrected labels, duplicates and splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from cluster.base.errors import UserError
from mpcot.pairs.ids import pair_id, query_id
from mpcot.pairs.overrides import correct, read_overrides
from mpcot.pairs.splits import LABELLED, QuerySplits, split_queries
from mpcot.pairs.twins import Twins, groups_of
from mpcot.schemes.scheme import Scheme
from mpcot.sources.clean_rows import reason_of
from mpcot.sources.config import PairsStage, TableSource
from mpcot.sources.open_source import cleaning_of

Row = dict[str, Any]  # the columns KEYS of a source row, then query_id and pair_id
KEYS = ["source_row", "query", "product_id", "locale", "label", "split", "error"]
HELD_OUT = "unlabelled row of a held-out query"
HELD = ("dev", "test")
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


def assign_splits(rows: list[Row], config: PairsStage) -> dict[str, Any]:
    """Set the `split` of every good row. Rows without a label, or whose label is not used, are unlabelled.

    Returns: how far the splits overlap, as `overlap_between` says.

    Raises:
        UserError: no row has a label, a query is in two splits, or there are too few queries.
    """
    good = [row for row in rows if not row["error"]]
    own_splits = any(row["split"] in LABELLED for row in good)
    given: dict[str, set[str]] = defaultdict(set)
    for row in good:
        if row["label"] is not None and row["split"] != "unlabelled":
            given[row["query_id"]] |= {row["split"]} if row["split"] else set()
    if not given and good:
        advice = "Name your column in source.columns.label" if isinstance(config.source, TableSource) else "Add some"
        raise UserError(f"source: no row has a label, which training needs. {advice}")
    kept = config.split.kept_together
    groups = groups_of([row for row in good if row["query_id"] in given], kept)
    dealt = split_queries(given, config.split, config.seed, groups)
    if dealt.in_two and config.split.query_in_two_splits == "stop":
        raise UserError(_two_splits(dealt, good))
    twins, alone = Twins.of(good), split_queries(given, config.split, config.seed)
    before = [_split_of(row, alone) for row in good]
    held_out = frozenset(twins.like([query for query, split in dealt.splits.items() if split in HELD]) if kept else ())
    for row in good:
        _assign(row, dealt, held_out)
    now = [None if row["error"] else row["split"] for row in good]
    moved = sum(alone.splits[query] != split for query, split in dealt.splits.items())
    figures = {"own_splits": own_splits, "grouped_queries": len(groups), "moved_queries": moved}
    return figures | {"by_query": overlap_between(twins, before), "now": overlap_between(twins, now)}


def overlap_between(twins: Twins, splits: list[str | None]) -> dict[str, dict[str, float]]:
    """Return for dev and test the shares of `queries` and `products` that the student also learns from."""
    return {split: twins.overlap(splits, split, ("train", "unlabelled")) for split in HELD}


def overlap_warning(overlap: dict[str, Any]) -> str | None:
    """Return what to say where the splits of the source itself overlap."""
    shares = {split: overlap["now"][split]["queries"] for split in HELD}
    said = " and ".join(f"{share:.1%} of the {split} queries" for split, share in shares.items() if share)
    if not said or not overlap["own_splits"]:
        return None
    return (
        f"by the source's own splits, {said} are learnt from as well, in another locale, number or word order. Figures "
        "on them are too good; leave the column split out to have queries dealt so that they are not"
    )


def _bare(row: Row) -> bool:
    return row["label"] is None or row["split"] == "unlabelled"


def _split_of(row: Row, dealt: QuerySplits) -> str | None:
    """Return the split of a row, or None if its query is in two splits, or held out while the row has no label."""
    split, bare = dealt.splits.get(row["query_id"], "unlabelled"), _bare(row)
    if row["query_id"] in dealt.in_two or (bare and split in HELD):
        return None
    return "unlabelled" if bare else split


def _assign(row: Row, dealt: QuerySplits, like_held_out: frozenset[str]) -> None:
    split = _split_of(row, dealt)
    if row["query_id"] in dealt.in_two:
        row["error"] = "query in two splits"
    elif split is None:
        row["error"] = f"{HELD_OUT}: its query is in the {dealt.splits[row['query_id']]} split"
    elif row["query_id"] in like_held_out and row["query_id"] not in dealt.splits:
        row["error"] = f"{HELD_OUT}: a query with the same words is in dev or test"
    else:
        row["split"], row["label"] = split, None if split == "unlabelled" else row["label"]


def _two_splits(dealt: QuerySplits, rows: Iterable[Row]) -> str:
    names = sorted({row["query"] for row in rows if row["query_id"] in dealt.in_two})
    shown = ", ".join(repr(name) for name in names[:5]) + (" ..." if len(names) > 5 else "")
    return (
        f"source column split: {len(names)} queries are in two splits: {shown}. A query must be in one; "
        "correct the column, leave it out, or set split.query_in_two_splits = 'fail' to fail their rows"
    )
