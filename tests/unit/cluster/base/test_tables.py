"""Files are whole or absent; full and closed disks end in a message."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder, write_json
from cluster.base.tables import check_writable, read_table, rows_of, write_table
from cluster.training.arrow_rows import write_rows

SMALL = pa.table({"pair_id": ["a", "b", "c"], "n": [1, 2, 3]})
MIB = 2**20


def large() -> pa.Table:
    """Four MiB that do not compress."""
    return pa.table({"noise": np.random.default_rng(0).integers(0, 2**62, MIB // 2)})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one MiB; skipped where this user may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if mount is None or os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def closed_disk(place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)


def test_a_table_comes_back_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = write_table(tmp_path / "deep" / "rows.parquet", SMALL)
    assert read_table(path).equals(SMALL)
    assert read_table(path, ["n"]).column_names == ["n"]
    assert [p.name for p in path.parent.iterdir()] == ["rows.parquet"]


def test_a_folder_is_read_in_the_order_of_names_without_partial_files(tmp_path: Path) -> None:
    write_table(tmp_path / "b.parquet", SMALL.slice(0, 1))
    write_table(tmp_path / "a.parquet", SMALL.slice(1))
    (tmp_path / "c.parquet.partial").write_bytes(b"half a part")
    assert read_table(tmp_path)["pair_id"].to_pylist() == ["b", "c", "a"]


def test_rows_are_read_in_pieces(tmp_path: Path) -> None:
    path = write_table(tmp_path / "rows.parquet", SMALL)
    assert list(rows_of(path, batch=2)) == SMALL.to_pylist()
    assert list(rows_of(path, ["n"])) == [{"n": 1}, {"n": 2}, {"n": 3}]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permission denied"),
    ],
)
@pytest.mark.parametrize("kind", ["table", "rows", "json"])
def test_a_failed_write_says_why_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, says: str, kind: str
) -> None:
    path = tmp_path / "made"
    writers = {
        "table": lambda: write_table(path, SMALL),
        "rows": lambda: write_rows(path, SMALL),
        "json": lambda: write_json(path, {"a": 1}),
    }
    writers[kind]()
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "replace", fail)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=says) as caught:
        writers[kind]()
    assert str(path) in str(caught.value) and "--out" in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_a_full_disk(small_disk: Path) -> None:
    write_table(small_disk / "before.parquet", SMALL)
    for write in (write_table, write_rows):
        with pytest.raises(UserError, match="the disk is full"):
            write(small_disk / "large", large())
    assert [p.name for p in small_disk.iterdir()] == ["before.parquet"]
    assert read_table(small_disk / "before.parquet").equals(SMALL)


def test_a_full_disk_never_has_a_manifest(small_disk: Path) -> None:
    folder = StageFolder(small_disk, "1-pairs")
    folder.path.mkdir()
    with pytest.raises(UserError, match="the disk is full"):
        folder.finish({}, {"much": "x" * 2 * MIB})
    assert folder.manifest() is None and not list(folder.path.iterdir())


def test_a_read_only_disk(small_disk: Path) -> None:
    closed_disk(small_disk)
    with pytest.raises(UserError, match="the disk is read-only"):
        check_writable(small_disk / "run")
    with pytest.raises(UserError, match="the disk is read-only"):
        write_table(small_disk / "rows.parquet", SMALL)
    with pytest.raises(UserError, match="the disk is read-only"):
        write_rows(small_disk / "rows.arrow", SMALL)
    assert not list(small_disk.iterdir())


def test_the_probe_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        check_writable(tmp_path / "run")
