"""Checks and reads the files of a source, local or on any pyarrow filesystem.

Where Ray is connected, its Data does the work, one task for each text file or some row groups of a parquet file.
Without Ray the same functions run in this process, so that readers can be tested alone. A text file is read as a whole,
so large data should come as parquet or in several files. On a cluster every node must see a local path.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cluster.base.errors import UserError
from cluster.base.progress import console
from mpcot.sources.delimited import DELIMITERS, PARSE_ERROR, Layout, layout_of
from mpcot.sources.encoding import check_encoding
from mpcot.sources.parse_text import parse_text
from mpcot.sources.places import files_in, format_of, keys_of, resolve

BATCH = 4096  # rows handed to a transform at a time
TASK_ROWS = 65_536  # at least so many rows of a parquet file are read by one task
PROBE_BYTES = 1 << 22  # how much of a jsonl file is read to learn its columns
MAPPED = "Correct the file, or name yours in source.columns"
Transform = Callable[[list[dict[str, Any]]], pa.Table]


@dataclass(frozen=True)
class Part:
    """One file: its columns, what its folders say of all its rows, and how it is written if it is csv or tsv."""

    path: str
    columns: tuple[str, ...]
    keys: dict[str, str | None]
    layout: Layout | None = None


@dataclass(frozen=True)
class FileSet:
    """Files of one format on one filesystem, and the setting that names them."""

    filesystem: pafs.FileSystem
    parts: tuple[Part, ...]
    format: str
    field: str

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(part.path for part in self.parts)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of all files, as later ones may have more, and the keys of their folders."""
        names = (name for part in self.parts for name in (*part.columns, *part.keys))
        return tuple(dict.fromkeys(name for name in names if name))

    def need(self, columns: Sequence[str], field: str, advice: str = "Correct the file") -> None:
        """Raise a `UserError` that names the columns which no file has, those that there are, and the way out."""
        missing = [name for name in columns if name not in self.columns and not self._mention(name)]
        if missing:
            raise UserError(
                f"{field}: {self.paths[0]} has no column {', '.join(map(repr, missing))}; it has "
                f"{', '.join(self.columns) or 'none'}. {advice}"
            )

    def _mention(self, name: str) -> bool:
        """Return whether a jsonl file has the key anywhere, as its first lines need not have all keys."""
        keys = [json.dumps(name, ensure_ascii=plain).encode() for plain in (True, False)]
        for path in self.paths if self.format == "jsonl" else ():
            with self.filesystem.open_input_stream(path) as stream:
                content = stream.readall()
            if any(key in content for key in keys):
                return True
        return False


def find(path: str, form: str = "auto", field: str = "source.path") -> FileSet:
    """Return the files at `path`, a file or a folder, after checking that they can be decoded and have rows.

    Raises:
        UserError: there is nothing at `path`, the format is unknown or mixed, or a file is not UTF-8, empty or broken.
    """
    filesystem, found = resolve(path, field)
    files = files_in(filesystem, found, path, form, field)
    formats = {form if form != "auto" else format_of(file, field) for file in files}
    if len(formats) > 1:
        raise UserError(f"{field}: {path} mixes {', '.join(sorted(formats))}. Give a folder of one format")
    (form,) = formats
    if form == "parquet":
        parts = _parquet_parts(filesystem, files, found, field)
    else:
        blank = [check_encoding(filesystem, file, field) for file in files]
        if all(blank):
            raise UserError(f"{field}: {files[0]} is empty")
        parts = (_delimited_parts if form in DELIMITERS else _json_parts)(filesystem, files, found, form, field)
    return FileSet(filesystem, parts, form, field)


def _parquet_parts(filesystem: pafs.FileSystem, files: Sequence[str], root: str, field: str) -> tuple[Part, ...]:
    rows, parts = 0, []
    for path in files:
        try:
            meta = pq.ParquetFile(path, filesystem=filesystem)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{field}: {path} is not a readable parquet file: {error}") from error
        rows += meta.metadata.num_rows
        parts.append(Part(path, tuple(meta.schema_arrow.names), keys_of(path, root)))
        meta.close()
    if rows == 0:
        raise UserError(f"{field}: {files[0]} has no rows")
    return tuple(parts)


def _delimited_parts(
    filesystem: pafs.FileSystem, files: Sequence[str], root: str, form: str, field: str
) -> tuple[Part, ...]:
    parts = []
    for path in files:
        layout = layout_of(_text(filesystem, path), form)
        parts.append(Part(path, layout.header, keys_of(path, root), layout))
    if not any(part.layout and part.layout.rows for part in parts):
        raise UserError(f"{field}: {files[0]} has no rows, only a header")
    return tuple(parts)


def _json_parts(
    filesystem: pafs.FileSystem, files: Sequence[str], root: str, form: str, field: str
) -> tuple[Part, ...]:
    """Return the files with the columns that the first lines of each have."""
    parts = []
    for path in files:
        with filesystem.open_input_stream(path) as stream:
            head = stream.read(PROBE_BYTES).decode("utf-8", errors="ignore")
        rows = itertools.islice(parse_text(head, None), 200)
        names = dict.fromkeys(name for row in rows if PARSE_ERROR not in row for name in row)
        parts.append(Part(path, tuple(names), keys_of(path, root)))
    return tuple(parts)


def collect(files: FileSet, transform: Transform, columns: Sequence[str], limit: int | None = None) -> pa.Table:
    """Return one table of what `stream` yields."""
    return pa.concat_tables(stream(files, transform, columns, limit))


def stream(
    files: FileSet, transform: Transform, columns: Sequence[str], limit: int | None = None
) -> Iterator[pa.Table]:
    """Return what `transform` makes of the rows, batch by batch, in the order of the files; at least one table.

    Args:
        transform: a pure function that can be pickled, from a list of plain rows to a table.
        columns: the columns to read of a parquet file.
        limit: stop after this many rows of the result.

    Raises:
        UserError: one of the columns comes twice in a file, or a file cannot be read to its end.
    """
    for part in files.parts:
        if doubled := [name for name in columns if part.columns.count(name) > 1]:
            raise UserError(f"{files.field}: {part.path} has the column {doubled[0]!r} twice. Rename one of them")
    _say_layouts(files)
    ray = sys.modules.get("ray")
    tables = _ray_tables if ray is not None and ray.is_initialized() else _local_tables
    return _some(tables(files, transform, columns, limit), transform, limit)


def _some(tables: Iterable[pa.Table], transform: Transform, limit: int | None) -> Iterator[pa.Table]:
    have = 0
    for table in tables:
        yield table if limit is None else table.slice(0, limit - have)
        have += table.num_rows
        if limit is not None and have >= limit:
            return
    if not have:
        yield transform([])


def _say_layouts(files: FileSet) -> None:
    """Print how files are read that are not written as the format says: other separators, or quotes as text."""
    usual = DELIMITERS.get(files.format), "doubled"
    first: dict[str, str] = {}
    for part in files.parts:
        if part.layout and (part.layout.delimiter, part.layout.quoting) != usual:
            first.setdefault(str(part.layout), part.path)
    for layout, path in first.items():
        console().print(f"{path} is read so: {layout}", markup=False, highlight=False)


def _local_tables(
    files: FileSet, transform: Transform, columns: Sequence[str], limit: int | None
) -> Iterator[pa.Table]:
    return (transform(rows) for part in files.parts for rows in batches(files, part, columns))


def batches(
    files: FileSet, part: Part, columns: Sequence[str], groups: Sequence[int] | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of one file, `BATCH` at a time. What a file has not, its rows have not.

    Args:
        columns: those to read of a parquet file.
        groups: the row groups to read of a parquet file; None reads all.

    Raises:
        UserError: the file is damaged.
    """
    found = _parquet_rows(files, part, columns, groups) if files.format == "parquet" else _text_rows(files, part)
    for rows in found:
        yield [part.keys | row for row in rows] if part.keys else rows


def _parquet_rows(
    files: FileSet, part: Part, columns: Sequence[str], groups: Sequence[int] | None
) -> Iterator[list[dict[str, Any]]]:
    # Without any column Arrow would give no rows.
    wanted = [name for name in part.columns if name in columns] or list(part.columns[:1])
    try:
        with pq.ParquetFile(part.path, filesystem=files.filesystem) as file:
            for batch in file.iter_batches(BATCH, row_groups=groups, columns=wanted):
                yield batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{files.field}: {part.path} cannot be read: {error}. Write the file again") from error


def _text_rows(files: FileSet, part: Part) -> Iterator[list[dict[str, Any]]]:
    rows = parse_text(_text(files.filesystem, part.path), part.layout)
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch


def _text(filesystem: pafs.FileSystem, path: str) -> str:
    with filesystem.open_input_stream(path) as stream:
        return stream.readall().decode("utf-8")


def tasks_of(files: FileSet) -> Iterator[dict[str, int]]:
    """Yield what one task reads: the place of a file and, of a parquet file, the first row group and the one after.

    `row` is the number of its first row in the file.
    """
    for place, part in enumerate(files.parts):
        if files.format != "parquet":
            yield {"part": place, "first": 0, "end": 0, "row": 0}
            continue
        meta = pq.read_metadata(part.path, filesystem=files.filesystem)
        first = rows = before = 0
        for group in range(meta.num_row_groups):
            rows += meta.row_group(group).num_rows
            if rows >= TASK_ROWS or group == meta.num_row_groups - 1:
                yield {"part": place, "first": first, "end": group + 1, "row": before}
                first, rows, before = group + 1, 0, before + rows


def batches_of_task(files: FileSet, task: Mapping[str, int], columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows that belong to a task of `tasks_of`, as `batches` does."""
    groups = range(task["first"], task["end"]) if files.format == "parquet" else None
    yield from batches(files, files.parts[task["part"]], columns, groups)


def _ray_tables(files: FileSet, transform: Transform, columns: Sequence[str], limit: int | None) -> Iterator[pa.Table]:
    import ray

    def read(tasks: pa.Table) -> Iterator[pa.Table]:
        for task in tasks.to_pylist():
            yield from map(transform, batches_of_task(files, task, columns))

    tasks = list(tasks_of(files))
    options = ray.data.DataContext.get_current().execution_options
    ordered, options.preserve_order = options.preserve_order, True  # source_row counts in the files' order
    try:
        given = ray.data.from_items(tasks, override_num_blocks=len(tasks))
        made = given.map_batches(read, batch_format="pyarrow", batch_size=1)
        blocks: Any = (made if limit is None else made.limit(limit)).iter_batches(
            batch_size=None, batch_format="pyarrow"
        )
        yield from (block for block in blocks if block.num_columns)
    finally:
        options.preserve_order = ordered
