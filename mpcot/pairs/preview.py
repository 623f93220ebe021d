"""Looks at a source as stage 1 will read it, without writing anything."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from cluster.base.errors import UserError
from mpcot.pairs.settle_rows import KEYS, Row, assign_splits, identify, refuse_failed
from mpcot.records import SPLITS
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.clean_rows import SourceRows, reason_of
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
        rows: list[Row] = source.rows.select(KEYS).to_pylist()
        seen.read = len(rows)
        identify(rows, len(rows) - source.candidates, config, scheme)
        _tell(rows, source, shown, seen)
        refuse_failed(rows, config)
        seen.overlap = assign_splits(rows, config)
        _tell(rows, source, shown, seen)
        refuse_failed(rows, config)
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


def _tell(rows: list[Row], source: SourceRows, shown: int, seen: Preview) -> None:
    titles = source.rows.slice(0, shown).select(["title"]).to_pylist()
    seen.rows = [row | title for row, title in zip(rows[:shown], titles, strict=True)]
    failed: dict[str, list[Row]] = defaultdict(list)
    asked: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["error"]:
            failed[reason_of(row["error"])].append(row)
        elif row["split"] in SPLITS:
            asked[row["split"]].add(row["query_id"])
    by_number = sorted(failed.items(), key=lambda one: -len(one[1]))
    seen.failed = {reason: (len(some), some[0]) for reason, some in by_number}
    seen.labels = dict(Counter(row["label"] for row in rows if not row["error"]).most_common())
    seen.queries = {split: len(asked[split]) for split in SPLITS}
