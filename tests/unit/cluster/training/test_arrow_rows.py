"""Training rows on disk behave like a sequence of dicts."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.training.arrow_rows import ArrowRows, write_rows

ROWS = [{"text": f"row {i}", "vectors": [[float(i)], None], "label": None if i % 2 else "E"} for i in range(5000)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> ArrowRows:
    path = tmp_path_factory.mktemp("rows") / "train.arrow"
    write_rows(path, pa.Table.from_pylist(ROWS))
    return ArrowRows(path)


def test_rows_come_back_across_chunks(rows: ArrowRows) -> None:
    assert len(rows) == 5000
    for place in (0, 1, 4095, 4096, 4999, -1, -5000):
        assert rows[place] == ROWS[place]


def test_slices(rows: ArrowRows) -> None:
    for part in (slice(0, 3), slice(4090, 4100), slice(-2, None), slice(10, 0, -3), slice(7, 7), slice(9000, None)):
        assert rows[part] == ROWS[part]


@pytest.mark.parametrize("place", [5000, -5001])
def test_out_of_range(rows: ArrowRows, place: int) -> None:
    with pytest.raises(IndexError):
        rows[place]


def test_iteration_ends(rows: ArrowRows) -> None:
    assert sum(1 for _ in rows) == 5000


def test_an_empty_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "dev.arrow", pa.table({"text": pa.array([], pa.string())}))
    empty = ArrowRows(tmp_path / "dev.arrow")
    assert len(empty) == 0 and list(empty) == [] and not list(tmp_path.glob("*.partial"))


def test_the_rows_lie_in_the_file_not_in_memory(tmp_path: Path) -> None:
    table = pa.table({"n": list(range(100_000))})
    write_rows(tmp_path / "train.arrow", table)
    before = pa.total_allocated_bytes()
    opened = ArrowRows(tmp_path / "train.arrow")
    assert opened[99_999] == {"n": 99_999}
    assert pa.total_allocated_bytes() - before < table.nbytes / 10
    assert pickle.loads(pickle.dumps(opened[5])) == {"n": 5}
