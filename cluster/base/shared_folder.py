"""A folder on any pyarrow filesystem, local or S3-like, that processes on several nodes share.

Local files are written under a partial name and renamed, and S3-like storage shows an object only once it is complete.
So a file in the folder is whole or absent.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cluster.base.errors import UserError
from cluster.base.tables import write_table
from cluster.base.whole_files import disk_error, synced_file, whole_file

COPIES = 16  # at a time


@dataclass(frozen=True)
class Entry:
    """A file of a shared folder: its name, and when it was last written, in seconds since 1970."""

    name: str
    modified_s: float


@dataclass(frozen=True)
class SharedFolder:
    """The folder `root` on `filesystem`, which need not exist. It can be pickled, to send it to workers."""

    filesystem: pafs.FileSystem
    root: str

    @classmethod
    def at(cls, place: str | Path) -> SharedFolder:
        """Return the folder at a local path or a URI such as `s3://bucket/folder`.

        Raises:
            UserError: no filesystem of pyarrow understands such a URI.
        """
        if "://" not in str(place):
            return cls(pafs.LocalFileSystem(), str(Path(place).expanduser().absolute()))
        try:
            return cls(*pafs.FileSystem.from_uri(str(place)))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"cannot open {place!r}: {error}. Check the address and the credentials") from error

    @property
    def local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def path(self, name: str) -> str:
        """Return the path of a file on the filesystem."""
        return f"{self.root}/{name}"

    def child(self, name: str) -> SharedFolder:
        """Return a folder in this one."""
        return SharedFolder(self.filesystem, self.path(name))

    def files(self, suffix: str = "") -> list[Entry]:
        """Return the files directly in the folder whose names end in `suffix`, sorted by name."""
        found = self.filesystem.get_file_info(pafs.FileSelector(self.root, allow_not_found=True))
        files = (info for info in found if info.is_file and info.base_name.endswith(suffix))
        return sorted((Entry(info.base_name, info.mtime.timestamp()) for info in files), key=lambda entry: entry.name)

    def folders(self) -> list[str]:
        """Return the names of the folders directly in this one, sorted."""
        found = self.filesystem.get_file_info(pafs.FileSelector(self.root, allow_not_found=True))
        return sorted(info.base_name for info in found if not info.is_file)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a parquet file.

        Raises:
            UserError: there is no room or no permission.
        """
        if self.local:
            write_table(Path(self.path(name)), table)
            return
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self._put(name, sink.getvalue())

    def touch(self, name: str) -> None:
        """Write an empty file."""
        if self.local:
            Path(self.path(name)).parent.mkdir(parents=True, exist_ok=True)
        self._put(name, b"")

    def write(self, name: str, content: bytes) -> None:
        """Write a small file.

        Raises:
            UserError: there is no room or no permission.
        """
        if self.local:
            with synced_file(Path(self.path(name))) as file:
                file.write(content)
            return
        self._put(name, content)

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, or None if there is none."""
        if not self.filesystem.get_file_info(self.path(name)).is_file:
            return None
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return stream.read()

    def _put(self, name: str, content: bytes | pa.Buffer) -> None:
        try:
            with self.filesystem.open_output_stream(self.path(name), compression=None) as stream:
                stream.write(content)
        except OSError as error:
            scheme = "" if self.local else f"{self.filesystem.type_name}://"
            raise disk_error(error, f"{scheme}{self.path(name)}") from error

    def batches(self, name: str, columns: list[str] | None = None, rows: int = 1024) -> Iterator[pa.RecordBatch]:
        """Yield a parquet file as record batches, with `rows` rows in memory at a time."""
        with pq.ParquetFile(self.path(name), filesystem=self.filesystem) as file:
            yield from file.iter_batches(batch_size=rows, columns=columns)

    def bring(self, target: Path, suffix: str, besides: Collection[str] = ()) -> None:
        """Copy the files that `target` does not have yet, except those `besides`.

        A file of the same name is taken to be the same file.
        """
        if self == SharedFolder.at(target):
            return

        def copy(name: str) -> None:
            with whole_file(target / name) as partial:
                pafs.copy_files(self.path(name), str(partial.absolute()), self.filesystem)

        there = {*besides, *(path.name for path in target.glob(f"*{suffix}"))}
        # Copying tens of thousands of small objects is mostly waiting.
        with ThreadPoolExecutor(COPIES) as pool:
            list(pool.map(copy, [entry.name for entry in self.files(suffix) if entry.name not in there]))

    def delete(self) -> None:
        """Delete the folder with everything in it, if it exists."""
        if self.local:
            shutil.rmtree(self.root, ignore_errors=True)  # a worker of a killed run may still be writing into it
        elif self.filesystem.get_file_info(self.root).type != pafs.FileType.NotFound:
            self.filesystem.delete_dir(self.root)
