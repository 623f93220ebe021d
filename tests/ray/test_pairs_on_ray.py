"""Where Ray is connected its Data readers give the same rows in the same order as reading without it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.base.ray_session import stream_parquet
from cluster.base.tables import write_table
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.config import ChorusSource, TableSource
from mpcot.sources.open_source import read_source

ray = pytest.importorskip("ray")


def files(folder: Path) -> list[TableSource | ChorusSource]:
    rows = [
        {
            "query": f"q{i}",
            "product_id": f"{i}",
            "title": f"T {i}",
            "label": "0123"[i % 4],
            "locale": "us" if i % 3 else "es",
        }
        for i in range(30)
    ]
    for name, part in (("a", rows[:20]), ("b", rows[20:])):
        (folder / "lines").mkdir(exist_ok=True)
        (folder / "table").mkdir(exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in part) + "{broken\n"
        (folder / "lines" / f"{name}.jsonl").write_text(lines)
        pq.write_table(pa.Table.from_pylist(part), folder / "table" / f"{name}.parquet", row_group_size=4)
    (folder / "chorus").mkdir()
    judged = ({"query": r["query"], "product_id": r["product_id"], "rating": int(r["label"])} for r in rows)
    shop = ({"product_id": r["product_id"], "title": r["title"], "attributes": {"n_size": 2.0}} for r in rows)
    (folder / "chorus" / "judgments.jsonl").write_text("\n".join(json.dumps(r) for r in judged))
    (folder / "chorus" / "products.jsonl").write_text("\n".join(json.dumps(r) for r in shop))
    for place, ids in enumerate(([1, 2, 3], ["4", "5", "6"])):  # parts that differ in a type and in columns
        part = folder / "unlike" / f"locale={('es', 'us')[place]}" / "part.parquet"
        part.parent.mkdir(parents=True)
        late = {"label": ["0", "1", "2"]} if place else {}
        pq.write_table(pa.table({"query": ["q"] * 3, "product_id": ids, "title": ["T"] * 3} | late), part)
    (folder / "quotes.tsv").write_text('query\tproduct_id\ttitle\nq\t1\t"Twin" Sofa\nq\t2\t"Queen\nq\t3\tRug\n')
    return [
        TableSource(path=str(folder / "unlike")),
        TableSource(path=str(folder / "quotes.tsv")),
        TableSource(path=str(folder / "lines")),
        TableSource(path=str(folder / "lines"), locales=("us",), limit=7),
        TableSource(path=str(folder / "table")),
        TableSource(path=str(folder / "table"), limit=23),
        TableSource(path=str(folder / "table"), locales=("jp",)),
        ChorusSource(path=str(folder / "chorus"), limit=11),
    ]


def test_ray_and_plain_reading_agree(tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch):
    scheme = load_scheme("graded")
    for source in files(tmp_path):
        with_ray = read_source(source, scheme).rows
        with monkeypatch.context() as patch:
            patch.setattr(ray, "is_initialized", lambda: False)
            without = read_source(source, scheme).rows
        assert with_ray.to_pylist() == without.to_pylist()
        assert with_ray.schema.equals(without.schema)


def test_a_large_file_keeps_several_actors_at_work(tmp_path: Path, local_ray: None):
    """An actor is handed whole blocks; a file of one block would leave all actors but one idle."""
    rows = [{"number": number, "text": f"{number:06d}" * 500} for number in range(10_000)]
    write_table(tmp_path / "rows.parquet", pa.Table.from_pylist(rows))
    read = stream_parquet(tmp_path / "rows.parquet").materialize()
    assert read.num_blocks() >= 5
    assert sorted(row["number"] for row in read.iter_rows()) == list(range(10_000))
