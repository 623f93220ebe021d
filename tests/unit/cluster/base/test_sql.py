"""Queries over parquet files: streams in an order, files that differ in columns, and what has no room in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.base import sql, tables
from cluster.base.errors import UserError
from cluster.base.sql import Ordered, database, scan
from cluster.base.tables import conformed, table_writer, write_table


def ids(batches: list[pa.RecordBatch]) -> list[str]:
    return [i for batch in batches for i in batch["id"].to_pylist()]


def test_streams_in_one_order_are_read_side_by_side(tmp_path: Path) -> None:
    for name, own in (("it's", ["c", "a", "b", "a"]), ("b", ["d", "a"])):
        write_table(
            tmp_path / f"{name}.parquet", pa.table({"id": own, "from": [f"{name}{n}" for n in range(len(own))]})
        )
    with database(tmp_path) as data:
        rows = data.in_order([tmp_path / "it's.parquet", tmp_path / "b.parquet"], "id", ["id", "from"])
        others = data.in_order([tmp_path / "b.parquet"], "id", ["id"], "id != 'a'")
        first = rows.upto("a")
        assert [name for batch in first for name in batch["from"].to_pylist()] == ["it's1", "it's3", "b1"]
        assert ids(others.upto("c")) == [] and ids(rows.upto("c")) == ["b", "c"]
        assert [(ids(batches), last) for batches, last in rows.chunks()] == [(["d"], "d")] and ids(
            others.upto("z")
        ) == ["d"]
        assert data.value(f"SELECT count(*) FROM {scan(tmp_path)}") == 6
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".parquet"] * 2
    assert Ordered((), "id").upto("a") == []


def test_parts_with_fewer_columns_are_read_with_nulls(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", pa.table({"id": ["1"]}))
    write_table(tmp_path / "b.parquet", pa.table({"id": ["2"], "n": [7]}))
    schema = pa.schema([("id", pa.string()), ("n", pa.int32()), ("more", pa.list_(pa.string()))])
    with database(tmp_path) as data:
        found = conformed(list(data.stream(f"FROM {scan(tmp_path)} ORDER BY id")), schema)
    assert found.schema.equals(schema) and found["n"].to_pylist() == [None, 7]


def test_what_has_no_room_in_memory_is_sorted_on_disk_and_a_full_disk_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "MEMORY_MIB", 160)
    numbers = np.random.default_rng(0).permutation(400_000)
    texts = pa.array([f"{n:07d}" + "x" * 400 for n in numbers.tolist()])
    write_table(tmp_path / "rows.parquet", pa.table({"text": texts}))
    with database(tmp_path) as data:
        found = [
            text[:7]
            for b in data.stream(f"SELECT text FROM {scan(tmp_path)} ORDER BY text")
            for text in b["text"].to_pylist()
        ]
    assert found == [f"{n:07d}" for n in range(400_000)]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot sort or join"), database(tmp_path / "file") as data:
        list(data.stream(f"SELECT text FROM {scan(tmp_path / 'rows.parquet')} ORDER BY text"))


def test_a_writer_gathers_small_tables_and_ends_a_file_it_cannot_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "GROUP_BYTES", 800)
    with table_writer(tmp_path / "rows.parquet", pa.schema([("n", pa.int64())])) as writer:
        for number in range(250):
            writer.write_table(pa.table({"n": [number]}))
    assert [pq.read_metadata(tmp_path / "rows.parquet").row_group(n).num_rows for n in range(3)] == [100, 100, 50]
    assert pq.read_table(tmp_path / "rows.parquet")["n"].to_pylist() == list(range(250))
    with (
        pytest.raises(ValueError, match="schema"),
        table_writer(tmp_path / "bad.parquet", pa.schema([("n", pa.int64())])) as writer,
    ):
        writer.write_table(pa.table({"m": [1]}))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]
