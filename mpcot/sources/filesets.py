"""Finds, checks and reads the files of a source, local or on any pyarrow filesystem.

Where Ray is connected, its Data readers do the work, one task for each text file or parquet fragment. Without Ray the
same functions run in this process, so that readers can be tested alone. A text file is read as a whole, so large data
should come as parquet or in several files. On a cluster every node must see a local path.
"""

from __future__ import annotations

import codecs
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cluster.base.errors import UserError
from mpcot.sources.parse_text import DELIMITERS, PARSE_ERROR, TEXT_FORMATS, parse_text

SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
BATCH = 4096  # rows handed to a transform at a time
PROBE_BYTES = 1 << 22  # how much of a text file is read to learn its columns
Transform = Callable[[list[dict[str, Any]]], pa.Table]


@dataclass(frozen=True)
class FileSet:
    """Files of one format on one filesystem. `columns` are those of the first file."""

    filesystem: pafs.FileSystem
    paths: tuple[str, ...]
    format: str
    columns: tuple[str, ...]

    def need(self, columns: Sequence[str], field: str) -> None:
        """Raise a `UserError` that names the missing columns and those that the file has."""
        missing = [name for name in columns if name not in self.columns and not self._mention(name)]
        if missing:
            raise UserError(
                f"{field}: {self.paths[0]} has no column {', '.join(map(repr, missing))}; it has "
                f"{', '.join(self.columns) or 'none'}. Correct the file, or name yours in source.columns"
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
    filesystem, found = _resolve(path, field)
    files = _files(filesystem, found, path, form, field)
    formats = {form if form != "auto" else _format(file, field) for file in files}
    if len(formats) > 1:
        raise UserError(f"{field}: {path} mixes {', '.join(sorted(formats))}. Give a folder of one format")
    (form,) = formats
    if form in TEXT_FORMATS:
        blank = [_check_encoding(filesystem, file, field) for file in files]
        if all(blank):
            raise UserError(f"{field}: {files[0]} is empty")
    columns = _columns(filesystem, files, form, field)
    return FileSet(filesystem, tuple(files), form, columns)


def check_path(path: str, field: str) -> None:
    """Raise a `UserError` if there is nothing at `path`."""
    _resolve(path, field)


def state(path: str, field: str) -> list[tuple[str, int, int]]:
    """Return name, size in bytes and modification time in nanoseconds of the file, or of all files in the folder.

    Raises:
        UserError: there is nothing at `path`.
    """
    filesystem, found = _resolve(path, field)
    info = filesystem.get_file_info(found)
    inside = [info] if info.is_file else filesystem.get_file_info(pafs.FileSelector(found, recursive=True))
    files = sorted((one for one in inside if one.is_file), key=lambda one: one.path)
    return [(one.base_name, one.size, one.mtime_ns) for one in files]


def exists(path: str, name: str, field: str = "source.path") -> str | None:
    """Return the path of file `name` in folder `path`, or None if there is no such file."""
    filesystem, found = _resolve(path, field)
    inside = f"{found.rstrip('/')}/{name}"
    return f"{path.rstrip('/')}/{name}" if filesystem.get_file_info(inside).is_file else None


def collect(files: FileSet, transform: Transform, columns: Sequence[str], limit: int | None = None) -> pa.Table:
    """Return one table of what `transform` makes of the rows, batch by batch, in the order of the files.

    Args:
        transform: a pure function that can be pickled, from a list of plain rows to a table.
        columns: the columns to read of a parquet file.
        limit: stop after this many rows of the result.
    """
    ray = sys.modules.get("ray")
    tables = _ray_tables if ray is not None and ray.is_initialized() else _local_tables
    result = pa.concat_tables(tables(files, transform, [c for c in columns if c in files.columns], limit))
    return result if limit is None else result.slice(0, limit)


def _resolve(path: str, field: str) -> tuple[pafs.FileSystem, str]:
    try:
        if "://" in path:
            filesystem, found = pafs.FileSystem.from_uri(path)
        else:
            filesystem, found = pafs.LocalFileSystem(), str(Path(path).expanduser().absolute())
        info = filesystem.get_file_info(found)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{field}: cannot open {path!r}: {error}. Check the address and the credentials") from error
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"{field}: {path!r} does not exist. Give a file, a folder or a URI such as s3://bucket/folder")
    return filesystem, found


def _files(filesystem: pafs.FileSystem, found: str, path: str, form: str, field: str) -> list[str]:
    if filesystem.get_file_info(found).is_file:
        return [found]
    inside = filesystem.get_file_info(pafs.FileSelector(found, recursive=True))
    names = sorted(info.path for info in inside if info.is_file and not info.base_name.startswith((".", "_")))
    if form == "auto":
        names = [name for name in names if _suffix(name) in SUFFIXES]
    if not names:
        raise UserError(f"{field}: folder {path!r} has no file that ends in {', '.join(SUFFIXES)}")
    return names


def _suffix(path: str) -> str:
    return Path(path.removesuffix(".gz")).suffix.lower()


def _format(path: str, field: str) -> str:
    if _suffix(path) not in SUFFIXES:
        raise UserError(
            f"{field}: {path} does not end in {', '.join(SUFFIXES)}, so its format is unknown. "
            "Rename it or set source.format"
        )
    return SUFFIXES[_suffix(path)]


def _check_encoding(filesystem: pafs.FileSystem, path: str, field: str) -> bool:
    """Decode a text file block by block, to name a wrong byte before any work starts; return whether it is blank."""
    decoder, offset, blank = codecs.getincrementaldecoder("utf-8")(), 0, True
    with filesystem.open_input_stream(path) as stream:
        while block := stream.read(1 << 22):
            pending = len(decoder.getstate()[0])
            try:
                blank = not decoder.decode(block).strip() and blank
            except UnicodeDecodeError as error:
                place = offset - pending + error.start
                raise UserError(_encoding_message(path, place, block, field)) from error
            offset += len(block)
    if decoder.getstate()[0]:
        raise UserError(_encoding_message(path, offset, b"", field))
    return blank


def _encoding_message(path: str, offset: int, block: bytes, field: str) -> str:
    wide = offset == 0 and block[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    guess = "UTF-16" if wide else "LATIN1"
    name = Path(path).name
    return (
        f"{field}: {path} is not UTF-8: byte {offset} cannot be decoded"
        f"{' (it looks like UTF-16)' if wide else ''}. Convert it, for instance: "
        f"iconv -f {guess} -t UTF-8 {name} > new-{name}"
    )


def _columns(filesystem: pafs.FileSystem, files: Sequence[str], form: str, field: str) -> tuple[str, ...]:
    if form == "parquet":
        return _parquet_columns(filesystem, files, field)
    for file in files:  # Spark may write files without rows
        with filesystem.open_input_stream(file) as stream:
            head = stream.read(PROBE_BYTES).decode("utf-8", errors="ignore")
        if rows := list(itertools.islice(parse_text(head, form), 200)):
            parsed = [row for row in rows if PARSE_ERROR not in row or form in DELIMITERS]
            names = dict.fromkeys(name for row in parsed for name in row)
            names.pop(PARSE_ERROR, None)
            return tuple(names)
    raise UserError(f"{field}: {files[0]} has no rows{', only a header' if form in DELIMITERS else ''}")


def _parquet_columns(filesystem: pafs.FileSystem, files: Sequence[str], field: str) -> tuple[str, ...]:
    rows, names = 0, ()
    for path in files:
        try:
            meta = pq.ParquetFile(path, filesystem=filesystem)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{field}: {path} is not a readable parquet file: {error}") from error
        rows, names = rows + meta.metadata.num_rows, names or tuple(meta.schema_arrow.names)
        meta.close()
    if rows == 0:
        raise UserError(f"{field}: {files[0]} has no rows")
    return names


def _local_tables(files: FileSet, transform: Transform, columns: list[str], limit: int | None) -> list[pa.Table]:
    tables, have = [], 0
    for path in files.paths:
        for rows in _local_batches(files, path, columns):
            tables.append(transform(rows))
            have += tables[-1].num_rows
            if limit is not None and have >= limit:
                return tables
    return tables


def _local_batches(files: FileSet, path: str, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    if files.format == "parquet":
        with pq.ParquetFile(path, filesystem=files.filesystem) as file:
            for batch in file.iter_batches(BATCH, columns=columns):
                yield batch.to_pylist()
        return
    with files.filesystem.open_input_stream(path) as stream:
        yield from _batches(stream.read(), files.format)


def _batches(content: bytes, form: str) -> Iterator[list[dict[str, Any]]]:
    rows = parse_text(content.decode("utf-8"), form)
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch


def _ray_tables(files: FileSet, transform: Transform, columns: list[str], limit: int | None) -> list[pa.Table]:
    import ray

    form = files.format

    def typed(batch: pa.Table) -> pa.Table:
        return transform(batch.to_pylist())

    def parsed(batch: pa.Table) -> Iterator[pa.Table]:
        for content in batch["bytes"].to_pylist():
            yield from map(transform, _batches(content, form))

    options = ray.data.DataContext.get_current().execution_options
    ordered, options.preserve_order = options.preserve_order, True  # source_row counts in the files' order
    try:
        if form == "parquet":
            read = ray.data.read_parquet(list(files.paths), filesystem=files.filesystem, columns=columns)
            made = read.map_batches(typed, batch_format="pyarrow", batch_size=BATCH)
        else:
            read = ray.data.read_binary_files(list(files.paths), filesystem=files.filesystem)
            made = read.map_batches(parsed, batch_format="pyarrow", batch_size=1)
        blocks = ray.get((made if limit is None else made.limit(limit)).to_arrow_refs())
    finally:
        options.preserve_order = ordered
    return [block for block in blocks if block.num_columns] or [transform([])]
