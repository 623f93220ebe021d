"""Looks at a source as stage 1 will read it, without writing anything."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.base.errors import UserError
from mpcot.pairs.settle_rows import DECIDED, REASON, Row, SettledRows, settled_rows
from mpcot.records import SPLITS
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.clean_rows import ROW
from mpcot.sources.config import FileSource, PairsStage, TableSource
from mpcot.sources.open_source import read_source

SHOWN = ("query", "product_id", "title", "locale", "label", "split")


@dataclass
class Preview:
    """What a source has. `problem` is why the run would stop, and then only what was found before is known.

    Args:
        files: of each group of files the first name, their number, how they are written, and their columns with types.
        likely: our columns that are missing, with the column that is probably it.
        rows: the first rows as they will be read, with `split` as dealt and `error`.
        overlap: how far the splits overlap, as `assign_splits` returns it.
        failed: why rows will fail, with their number and the first of them.
    """

    files: list[tuple[str, int, str, dict[str, str]]] = field(default_factory=list)
    likely: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    read: int = 0
    failed: dict[str, tuple[int, Row]] = field(default_factory=dict)
    labels: dict[str | None, int] = field(default_factory=dict)
    queries: dict[str, int] = field(default_factory=dict)
    overlap: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def preview(config: PairsStage, shown: int) -> Preview:
    """Read the source and return what stage 1 would make of it, with the first `shown` rows."""
    seen = Preview()
    scheme = load_scheme(config.labels.scheme)
    try:
        if isinstance(config.source, FileSource):
            _look_at_files(config.source, seen)
        source = read_source(config.source, scheme)
        with TemporaryDirectory(prefix="broadfast-") as scratch, settled_rows(config, scheme, Path(scratch)) as rows:
            rows.take(source)
            _tell(rows, shown, seen)
            rows.refuse_failed()
            seen.overlap = rows.assign_splits()
            _tell(rows, shown, seen)
            rows.refuse_failed()
    except UserError as error:
        seen.problem = str(error)
    return seen


def _look_at_files(source: FileSource, seen: Preview) -> None:
    from mpcot.sources.columns import likely_names, types_of
    from mpcot.sources.files import files_of

    for files in files_of(source):
        layouts = Counter(str(part.layout) for part in files.parts if part.layout)
        said = "; ".join(layout if len(layouts) == 1 else f"{count}: {layout}" for layout, count in layouts.items())
        seen.files.append((files.paths[0], len(files.paths), said or files.format, types_of(files)))
        if isinstance(source, TableSource):
            seen.likely = likely_names(files.columns, {*source.columns, *source.columns.values()})


def _tell(rows: SettledRows, shown: int, seen: Preview) -> None:
    seen.read = rows.count
    texts, decided = next(rows.texts(), (ROW.empty_table(), DECIDED.empty_table()))
    titles = texts.slice(0, shown).select(["title"]).to_pylist()
    seen.rows = [row | title for row, title in zip(decided.slice(0, shown).to_pylist(), titles, strict=True)]
    reasons = rows.sql(
        f"""SELECT {REASON} AS reason, count(*) AS times, min(source_row) AS first, arg_min(error, source_row) FROM rows
        WHERE error IS NOT NULL GROUP BY reason ORDER BY times DESC, first"""
    )
    seen.failed = {reason: (times, {"source_row": first, "error": error}) for reason, times, first, error in reasons}
    labels = "SELECT label, count(*) AS times FROM rows WHERE error IS NULL GROUP BY label ORDER BY times DESC, label"
    seen.labels = dict(rows.sql(labels))
    queries = (
        "SELECT split, count(DISTINCT query_id) FROM rows WHERE error IS NULL AND split IS NOT NULL GROUP BY split"
    )
    found = dict(rows.sql(queries))
    seen.queries = {split: found.get(split, 0) for split in SPLITS}
