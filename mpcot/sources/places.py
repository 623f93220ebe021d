"""Finds files of a source, local or on any pyarrow filesystem, and what the names of their folders say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
import xxhash

from cluster.base.errors import UserError
from cluster.base.stage_folder import digest

SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods")
CONVERT_SPREADSHEET = (
    "Save it in the spreadsheet program as CSV UTF-8, or convert it, for instance: "
    "pandas.read_excel(file, dtype=str).to_parquet('judged.parquet')"
)
CHUNK_BYTES = 1 << 22
EMPTY_KEY = "__HIVE_DEFAULT_PARTITION__"  # what Hive and Spark write for null
_SUMS: dict[tuple[Any, ...], str] = {}
_LOGS = {"_delta_log": "Delta", ".hoodie": "Hudi"}  # the folder in which a format of tables says which files count


def resolve(path: str, field: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a path or URI, and the path on it.

    Raises:
        UserError: there is nothing at `path`, or it cannot be opened.
    """
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


def check_path(path: str, field: str) -> None:
    """Raise a `UserError` if there is nothing at `path`."""
    resolve(path, field)


def content(path: str, field: str) -> str:
    """Return a digest of the file, or of all files in the folder that may have rows, wherever they lie.

    A file is known by its ETag where its filesystem gives one, as S3 does, and else by all of its bytes.

    Raises:
        UserError: there is nothing at `path`, or it cannot be read.
    """
    filesystem, found = resolve(path, field)
    info = filesystem.get_file_info(found)
    try:
        if info.is_file:
            return digest([suffix(found), _sum(filesystem, info)])
        inside = filesystem.get_file_info(pafs.FileSelector(found, recursive=True))
        files = {"/".join(_below(one.path, found)): one for one in inside if one.is_file}
        shown = {name: one for name, one in files.items() if not any(map(_hidden, name.split("/")))}
        return digest({name: _sum(filesystem, one) for name, one in shown.items()})
    except OSError as error:
        raise UserError(f"{field}: cannot read {path!r}: {error}. Check the rights to it") from error


def _sum(filesystem: pafs.FileSystem, info: pafs.FileInfo) -> str:
    """Return a digest of a file, taken once per process while its size and time stay the same."""
    place = filesystem.type_name, info.path, info.size, info.mtime_ns
    if place not in _SUMS:
        _SUMS[place] = _read_sum(filesystem, info.path)
    return _SUMS[place]


def _read_sum(filesystem: pafs.FileSystem, path: str) -> str:
    with filesystem.open_input_stream(path, compression=None, buffer_size=CHUNK_BYTES) as stream:
        if (etag := (stream.metadata() or {}).get(b"ETag")) is not None:
            return str(etag.decode())
        sums = xxhash.xxh3_128()
        while chunk := stream.read(CHUNK_BYTES):
            sums.update(chunk)
    return sums.hexdigest()


def exists(path: str, name: str, field: str = "source.path") -> str | None:
    """Return the path of file `name` in folder `path`, or None if there is no such file."""
    filesystem, found = resolve(path, field)
    inside = f"{found.rstrip('/')}/{name}"
    return f"{path.rstrip('/')}/{name}" if filesystem.get_file_info(inside).is_file else None


def files_in(filesystem: pafs.FileSystem, found: str, path: str, form: str, field: str) -> list[str]:
    """Return the file itself, or all files of a folder that may have rows, sorted.

    What begins with a dot or an underscore is hidden, and so is what lies in a folder of such a name.

    Raises:
        UserError: there is no such file, or the folder belongs to a table format with deleted rows.
    """
    if filesystem.get_file_info(found).is_file:
        return [found]
    infos = filesystem.get_file_info(pafs.FileSelector(found, recursive=True))
    _refuse_table_formats([info.path for info in infos], found, path, field)
    shown = (info.path for info in infos if info.is_file and not any(map(_hidden, _below(info.path, found))))
    every = sorted(shown)
    names = [name for name in every if form != "auto" or suffix(name) in SUFFIXES]
    if not names and any(suffix(name) in SPREADSHEETS for name in every):
        raise UserError(f"{field}: folder {path!r} has spreadsheets only. {CONVERT_SPREADSHEET}")
    if not names:
        raise UserError(f"{field}: folder {path!r} has no file that ends in {', '.join(SUFFIXES)}. {_rename(field)}")
    return names


def _rename(field: str) -> str:
    return "Rename it, or set source.format of kind = 'table'" if field == "source.path" else "Rename it"


def _below(path: str, root: str) -> tuple[str, ...]:
    return PurePosixPath(path).parts[len(PurePosixPath(root).parts) :]


def _hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _refuse_table_formats(paths: Sequence[str], root: str, path: str, field: str) -> None:
    for name in _table_formats(paths, root):
        raise UserError(
            f"{field}: folder {path!r} is a {name} table, in which files of deleted and replaced rows lie beside those "
            f"that count. Write its rows as parquet first, for instance in Spark: "
            f"spark.read.format('{name.lower()}').load({path!r}).write.parquet('judged')"
        )


def _table_formats(paths: Sequence[str], root: str) -> Iterator[str]:
    for path in paths:
        *folders, name = _below(path, root)
        yield from (_LOGS[folder] for folder in (*folders, name) if folder in _LOGS)
        if folders[-1:] == ["metadata"] and name.endswith(".metadata.json"):
            yield "Iceberg"


def keys_of(path: str, root: str) -> dict[str, str | None]:
    """Return what the folders between `root` and a file say of all its rows, as in `locale=es/part-0.parquet`."""
    pairs = (folder.partition("=") for folder in _below(path, root)[:-1] if "=" in folder)
    return {unquote(name): None if value == EMPTY_KEY else unquote(value) for name, _, value in pairs}


def suffix(path: str) -> str:
    """Return the ending of a file's name in lower case, without `.gz`."""
    return PurePosixPath(path.removesuffix(".gz")).suffix.lower()


def format_of(path: str, field: str) -> str:
    """Return the format that a file's name tells.

    Raises:
        UserError: it tells none that can be read.
    """
    if suffix(path) in SPREADSHEETS:
        raise UserError(f"{field}: {path} is a spreadsheet. {CONVERT_SPREADSHEET}")
    if suffix(path) not in SUFFIXES:
        ends = ", ".join(SUFFIXES)
        raise UserError(f"{field}: {path} does not end in {ends}, so its format is unknown. {_rename(field)}")
    return SUFFIXES[suffix(path)]
