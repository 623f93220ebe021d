"""A store on a local disk: whole files, listed by name, brought to another folder once."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.base.errors import UserError
from cluster.base.shared_folder import SharedFolder

TABLE = pa.table({"key": [f"k{number}" for number in range(5)]})


def keys(store: SharedFolder, name: str, rows: int = 1024) -> list[list[str]]:
    return [batch["key"].to_pylist() for batch in store.batches(name, ["key"], rows)]


def test_a_table_is_read_back_in_batches_by_whoever_is_sent_the_store(tmp_path: Path) -> None:
    store = SharedFolder.at(tmp_path).child("one").child("two")
    store.write_table("a.parquet", TABLE)
    sent = pickle.loads(pickle.dumps(store))
    assert sent == store and keys(sent, "a.parquet", 2) == [["k0", "k1"], ["k2", "k3"], ["k4"]]
    assert os.listdir(tmp_path / "one" / "two") == ["a.parquet"]


def test_files_are_listed_by_name_with_their_times_and_no_folder_among_them(tmp_path: Path) -> None:
    store = SharedFolder.at(tmp_path)
    assert store.child("nothing").files() == []
    for name in ("b.parquet", "a.parquet", "a.parquet.partial"):
        store.touch(name)
    store.child("c.parquet").touch("inside")
    os.utime(tmp_path / "b.parquet", (5, 5))
    assert [entry.name for entry in store.files(".parquet")] == ["a.parquet", "b.parquet"]
    assert store.files(".parquet")[1].modified_s == 5


def test_files_are_brought_once_and_never_overwritten(tmp_path: Path) -> None:
    store, target = SharedFolder.at(tmp_path / "far"), tmp_path / "near"
    store.write_table("a.parquet", TABLE)
    store.bring(target, ".parquet")
    (tmp_path / "far" / "a.parquet").write_bytes(b"changed")
    store.write_table("b.parquet", TABLE)
    store.touch("c.partial")
    store.bring(target, ".parquet")
    assert sorted(os.listdir(target)) == ["a.parquet", "b.parquet"]
    assert keys(SharedFolder.at(target), "a.parquet") == [TABLE["key"].to_pylist()]
    before = sorted(os.listdir(target))
    SharedFolder.at(target).bring(target, ".parquet")
    assert sorted(os.listdir(target)) == before


def test_deleting_takes_the_folder_and_does_not_mind_that_there_is_none(tmp_path: Path) -> None:
    store = SharedFolder.at(tmp_path / "gone")
    store.delete()
    store.child("deep").touch("file")
    store.delete()
    assert not (tmp_path / "gone").exists()


def test_an_address_that_no_filesystem_takes_is_named() -> None:
    with pytest.raises(UserError, match="cannot open 'nowhere://bucket/x'"):
        SharedFolder.at("nowhere://bucket/x")


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*file/a.parquet"):
        SharedFolder.at(tmp_path / "file").write_table("a.parquet", TABLE)
