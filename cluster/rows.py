"""Training rows on disk: memory-mapped Arrow, so that workers share them and memory does not grow with rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from cluster.storage import disk_error


def write_rows(path: Path, table: pa.Table) -> None:
    """Write a table as an uncompressed Arrow file, whole or not at all.

    Raises:
        UserError: the disk is full or read-only.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=4096)
        os.replace(partial, path)
    except OSError as error:
        raise disk_error(error, path) from error


class ArrowRows(Sequence[dict[str, Any]]):
    """The rows of an Arrow file as dicts, read from the memory map when asked for."""

    def __init__(self, path: str | Path) -> None:
        with pa.memory_map(str(path)) as source:
            self.table = pa.ipc.open_file(source).read_all()

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return self.table.take(range(*place.indices(len(self)))).to_pylist()
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self.table.slice(place % len(self), 1).to_pylist()[0]
