"""What becomes of the rows of a source: their ids, corrected labels, duplicates and splits.

The rows lie on disk and DuckDB decides about them, so that memory grows with the number of queries alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.base.errors import UserError
from cluster.base.sql import Database, Ordered, database, quoted
from cluster.base.tables import batches_of, table_writer
from mpcot.pairs.ids import pair_id, query_id
from mpcot.pairs.overlap import HELD, PRODUCTS, QUERIES, overlap_between
from mpcot.pairs.overrides import Corrections, read_overrides
from mpcot.pairs.splits import LABELLED, QuerySplits, split_queries
from mpcot.pairs.twins import Twins, groups_of
from mpcot.records import texts
from mpcot.schemes.scheme import Scheme
from mpcot.sources.clean_rows import ROW, SourceRows
from mpcot.sources.config import PairsStage, TableSource
from mpcot.sources.open_source import cleaning_of

Row = dict[str, Any]
# A source row without its texts, and what is decided about it.
DECIDED = pa.schema(
    [
        pa.field("source_row", pa.int64(), nullable=False),
        *texts("query?", "product_id?", "locale?", "label?", "split?", "error?", "query_id?", "pair_id?"),
    ]
)
IDS = texts("query_id?", "pair_id?")
HELD_OUT = "unlabelled row of a held-out query"
KNOWN = "candidate that the source has already"
NO_FAULT = (HELD_OUT, KNOWN)  # these rows are left out, but the data is not at fault
DEALT = pa.schema([*texts("query_id", "dealt?"), pa.field("in_two", pa.bool_()), pa.field("like_held", pa.bool_())])
USED = "error IS NULL AND label IS NOT NULL AND split IS DISTINCT FROM 'unlabelled'"
BATCH = 8192
REASON = "split_part(error, ':', 1)"  # the part of an error before the detail, by which errors are counted


class SettledRows:
    """The rows of a source in a folder: `rows.parquet` as read, and in another file what was last decided about each.

    Args:
        corrected: what became of the corrected labels, or None without any.
    """

    def __init__(self, data: Database, folder: Path, config: PairsStage, scheme: Scheme) -> None:
        self.data, self.folder, self.config = data, folder, config
        overrides, cleaning = config.source.overrides, cleaning_of(config.source, scheme)
        self.corrections = Corrections(read_overrides(overrides, cleaning)) if overrides is not None else None
        self.corrected: dict[str, Any] | None = None
        self.decided = self.read = folder / "rows.parquet"
        self.own = self.count = 0

    def take(self, source: SourceRows) -> None:
        """Write all rows, the good ones with ids and corrected labels; then set the error of all duplicates.

        Raises:
            UserError: none of the corrected pairs is in the source.
        """
        with table_writer(self.read, pa.schema([*ROW, *IDS])) as writer:
            for table, more in source.numbered():
                writer.write_table(self._identified(table))
                self.count += len(table)
                self.own += 0 if more else len(table)
        if self.corrections is not None:
            self.corrected = self.corrections.figures()
        self._decide("unique.parquet", _DUPLICATES.format(own=self.own))

    def _identified(self, table: pa.Table) -> pa.Table:
        columns = (table[name].to_pylist() for name in ("locale", "query", "product_id", "error"))
        ids = [
            (None, None) if error else (query_id(locale, query), pair_id(locale, query, product))
            for locale, query, product, error in zip(*columns, strict=True)
        ]
        if self.corrections is not None:
            labels = self.corrections.apply([pair for _, pair in ids], table["label"].to_pylist())
            place = table.schema.get_field_index("label")
            table = table.set_column(place, ROW.field("label"), pa.array(labels, pa.string()))
        for place, field in enumerate(IDS):
            table = table.append_column(field, pa.array([own[place] for own in ids], pa.string()))
        return table

    def _decide(self, name: str, query: str, **tables: Any) -> None:
        """Write what a query says of every row, which has `rows` for what was decided before."""
        with table_writer(self.folder / name, DECIDED) as writer:
            for batch in self.data.stream(f"{query} ORDER BY source_row", rows=[self.decided], **tables):
                writer.write_table(pa.Table.from_batches([batch.select(DECIDED.names)]).cast(DECIDED))
        self.decided = self.folder / name

    def sql(self, query: str, **tables: Any) -> list[tuple[Any, ...]]:
        """Return the few rows of a query about `rows`, which has what is decided."""
        return self.data.rows(query, rows=[self.decided], **tables)

    def assign_splits(self) -> dict[str, Any]:
        """Set the `split` of every good row. Rows without a label, or whose label is not used, are unlabelled.

        Returns: how far the splits overlap, as `overlap_between` says, and as they would with every query dealt alone.

        Raises:
            UserError: no row has a label, a query is in two splits, or there are too few queries.
        """
        given = self._given()
        settings, seed = self.config.split, self.config.seed
        groups = groups_of(self._labelled(settings.kept_together), settings.kept_together)
        dealt, alone = (split_queries(given, settings, seed, own) for own in (groups, {}))
        if dealt.in_two and settings.query_in_two_splits == "stop":
            raise UserError(self._two_splits(dealt))
        twins = Twins.of(self._queries("error IS NULL"))
        held_out = twins.like([query for query, split in dealt.splits.items() if split in HELD])
        before = self._overlap(twins, _SPLITS, dealt=_dealt(alone))
        labelled = self.sql(f"SELECT 1 FROM rows WHERE error IS NULL AND split IN ({quoted(LABELLED)}) LIMIT 1")
        self._decide("split.parquet", _SPLITS, dealt=_dealt(dealt, held_out if settings.kept_together else ()))
        moved = sum(alone.splits[query] != split for query, split in dealt.splits.items())
        figures = {"own_splits": bool(labelled), "grouped_queries": len(groups), "moved_queries": moved}
        return figures | {"by_query": before, "now": self._overlap(twins, "FROM rows")}

    def _given(self) -> dict[str, set[str]]:
        """Return the splits that the source names for the labelled rows of each query."""
        found = self.sql(
            f"SELECT query_id, list(DISTINCT split) FILTER (split IS NOT NULL) FROM rows WHERE {USED} GROUP BY query_id"
        )
        if not found and self.sql("SELECT 1 FROM rows WHERE error IS NULL LIMIT 1"):
            table = isinstance(self.config.source, TableSource)
            advice = "Name your column in source.columns.label" if table else "Add some"
            raise UserError(f"source: no row has a label, which training needs. {advice}")
        return {query: set(splits or ()) for query, splits in found}

    def _queries(self, where: str) -> list[Row]:
        """Return each query once, as its first row has it."""
        names = ("query_id", "query", "locale", "product_id")
        found = self.sql(
            f"""SELECT query_id, arg_min(query, source_row), arg_min(locale, source_row),
            arg_min(product_id, source_row) FROM rows WHERE {where} GROUP BY query_id ORDER BY min(source_row)"""
        )
        return [dict(zip(names, row, strict=True)) for row in found]

    def _labelled(self, kept: Collection[str]) -> list[Row]:
        """Return a row of each labelled query or, where products are kept together, one of each with each product."""
        if "products" not in kept:
            return self._queries(USED) if kept else []
        names = ("query_id", "query", "locale", "product_id")
        query = f"SELECT {', '.join(names)} FROM rows WHERE {USED} ORDER BY source_row"
        return [dict(zip(names, row, strict=True)) for row in self.sql(query)]

    def _overlap(self, twins: Twins, settled: str, **tables: Any) -> dict[str, Any]:
        found = (self.sql(f"WITH settled AS ({settled}) {query}", **tables) for query in (QUERIES, PRODUCTS))
        return overlap_between(twins, *found)

    def _two_splits(self, dealt: QuerySplits) -> str:
        wanted = pa.table({"query_id": sorted(dealt.in_two)})
        query = "SELECT DISTINCT query FROM rows SEMI JOIN wanted USING (query_id) WHERE error IS NULL ORDER BY query"
        names = [name for (name,) in self.sql(query, wanted=wanted)]
        shown = ", ".join(repr(name) for name in names[:5]) + (" ..." if len(names) > 5 else "")
        return (
            f"source column split: {len(names)} queries are in two splits: {shown}. A query must be in one; "
            "correct the column, leave it out, or set split.query_in_two_splits = 'fail' to fail their rows"
        )

    def reasons(self) -> dict[str, int]:
        """Return how often rows failed for each reason, the most frequent first."""
        return dict(
            self.sql(
                f"""SELECT {REASON} AS reason, count(*) AS times FROM rows WHERE error IS NOT NULL
                GROUP BY reason ORDER BY times DESC, min(source_row)"""
            )
        )

    def refuse_failed(self) -> None:
        """Stop where there are no rows, or too many of them failed, so that the user can look at them.

        Raises:
            UserError: says why they failed.
        """
        source, found = self.config.source, self.reasons()
        where = str(getattr(source, "path", source.kind))
        if not self.count:
            raise UserError(f"source: {where} has no rows. Check the file and source.locales")
        failed = sum(found.values())
        share = sum(times for reason, times in found.items() if reason not in NO_FAULT) / self.count
        said = "; ".join(f"{reason}: {count}" for reason, count in found.items())
        if failed == self.count:
            raise UserError(f"source: all {self.count} rows of {where} failed ({said}). Correct the data")
        if share > source.max_failed_share:
            raise UserError(
                f"source: {failed} of {self.count} rows of {where} failed ({said}), more than "
                f"source.max_failed_share = {source.max_failed_share}. See failed.parquet; correct "
                "the data or raise that share"
            )

    def decisions(self) -> Iterator[Row]:
        """Yield what is decided about every row."""
        for batch in batches_of(self.decided):
            yield from batch.to_pylist()

    def texts(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yield the rows as read, some at a time, and beside them what is decided."""
        decided = Ordered(batches_of(self.decided, batch=BATCH), "source_row")
        for batch in batches_of(self.read, batch=BATCH):
            beside = decided.upto(batch["source_row"][-1].as_py())
            yield pa.Table.from_batches([batch]), pa.Table.from_batches(beside)


# Keeps one row per pair, the first one with a label. If rows have different labels, all of them fail.
_DUPLICATES = f"""
    WITH twice AS (
        SELECT pair_id, count(DISTINCT label) AS labels, string_agg(DISTINCT label, ', ' ORDER BY label) AS names,
            coalesce(min(source_row) FILTER (label IS NOT NULL), min(source_row)) AS kept
        FROM rows WHERE error IS NULL GROUP BY pair_id HAVING count(*) > 1
    )
    SELECT rows.* REPLACE (CASE
        WHEN error IS NOT NULL OR kept IS NULL OR (labels <= 1 AND source_row = kept) THEN error
        WHEN labels > 1 THEN 'conflicting labels: ' || names || ' for one query and product'
        WHEN source_row >= {{own}} AND {{own}} > kept THEN '{KNOWN}: in source row ' || kept
        ELSE 'duplicate: of source row ' || kept END AS error)
    FROM rows LEFT JOIN twice USING (pair_id)"""

_SPLITS = f"""
    WITH dealt_rows AS (
        SELECT *, coalesce(dealt, 'unlabelled') AS goes,
            label IS NULL OR split IS NOT DISTINCT FROM 'unlabelled' AS bare
        FROM rows LEFT JOIN dealt USING (query_id)
    ), judged AS (
        SELECT * REPLACE (CASE WHEN error IS NOT NULL THEN error WHEN in_two THEN 'query in two splits'
            WHEN bare AND goes IN ({quoted(HELD)}) THEN '{HELD_OUT}: its query is in the ' || goes || ' split'
            WHEN like_held THEN '{HELD_OUT}: a query with the same words is in dev or test' END AS error)
        FROM dealt_rows
    )
    SELECT * REPLACE (
        CASE WHEN error IS NOT NULL THEN split WHEN bare THEN 'unlabelled' ELSE goes END AS split,
        CASE WHEN error IS NOT NULL OR (NOT bare AND goes != 'unlabelled') THEN label END AS label)
    FROM judged"""


def _dealt(dealt: QuerySplits, like_held: Collection[str] = ()) -> pa.Table:
    """Return what `_SPLITS` joins: queries with their split, those in two, and others like held-out ones."""
    known = {*dealt.splits, *dealt.in_two}
    rows: list[tuple[str, str | None, bool, bool]] = [
        (query, split, False, False) for query, split in dealt.splits.items()
    ]
    rows += [(query, None, True, False) for query in dealt.in_two]
    rows += [(query, None, False, True) for query in like_held if query not in known]
    columns = zip(*rows, strict=True) if rows else [[]] * len(DEALT)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, DEALT, strict=True)], schema=DEALT)


@contextmanager
def settled_rows(config: PairsStage, scheme: Scheme, folder: Path) -> Iterator[SettledRows]:
    """Yield a place for the rows of a source in `folder`, which is removed at the end."""
    try:
        with database(folder) as data:
            yield SettledRows(data, folder, config, scheme)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
