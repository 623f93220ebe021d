"""Training rows in memory-mapped Arrow files, so that workers share them and memory does not grow with rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from cluster.base.whole_files import whole_file


def write_rows(path: Path, table: pa.Table) -> None:
    """Write a table as an uncompressed Arrow file that is whole or absent.

    Raises:
        UserError: the disk is full or read-only.
    """
    with (
        whole_file(path) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=4096)


class ArrowRows(Sequence[dict[str, Any]]):
    """The rows of an Arrow file as dicts, which are read from the memory map on demand."""

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
            return [self[number] for number in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self.table.slice(place % len(self), 1).to_pylist()[0]
