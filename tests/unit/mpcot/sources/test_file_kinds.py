"""Parquet in unlike parts, folders with keys, table formats, ESCI in one table, and odd lines of JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.base.errors import UserError
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.config import EsciSource, TableSource
from mpcot.sources.filesets import batches, find, tasks_of
from mpcot.sources.open_source import read_source

CASES = Path(__file__).parents[4].parent / "shared" / "cases"
needs_cases = pytest.mark.skipif(
    not CASES.is_dir(), reason="the small files of all kinds are not beside the repository"
)
BASE = {"query": "q", "title": "Sofa"}


def read(path: Path, scheme: str = "esci", source: type[Any] = TableSource, **more: Any) -> list[dict[str, Any]]:
    return read_source(source(path=str(path), **more), load_scheme(scheme)).rows.to_pylist()


def put(path: Path, columns: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@needs_cases
@pytest.mark.parametrize(
    ("name", "scheme", "more", "rows"),
    [
        ("d1_quotes.tsv", "esci", {}, 48),
        ("d3_nb", "esci", {}, 48),
        ("d4_hive_locale", "esci", {}, 48),
        ("d4_hive_locale", "esci", {"locales": ("es",)}, 24),
        ("d5_decimal.parquet", "graded", {}, 48),
        ("d6_floats.csv", "graded", {}, 48),
        ("d7_late", "esci", {}, 48),
        ("d9_flat_esci.parquet", "esci", {"source": EsciSource, "version": "small"}, 24),
        ("d11_trailing.csv", "esci", {}, 48),
    ],
)
def test_the_small_files_that_people_bring_are_read(name: str, scheme: str, more: dict[str, Any], rows: int):
    found = read(CASES / name, scheme, **more)
    assert Counter(row["error"] for row in found) == {None: rows}
    assert len({(row["query"], row["product_id"]) for row in found}) == rows


def test_parts_may_differ_in_columns_and_types(tmp_path: Path):
    put(tmp_path / "part-0.parquet", {"query": ["q"], "product_id": [7], "title": ["Sofa"]})
    late = {"split": ["test"], "locale": ["ES"], "brand": ["B"], "label": ["E"]}
    put(tmp_path / "part-1.parquet", {"title": ["Lamp"], "product_id": ["008"], "query": ["q"]} | late)
    put(tmp_path / "part-2.parquet", {"query": ["q"], "product_id": [9.0], "title": ["Rug"], "label": [None]})
    names = ("product_id", "title", "label", "split", "locale", "brand", "error")
    assert [tuple(row[name] for name in names) for row in read(tmp_path)] == [
        ("7", "Sofa", None, None, "us", None, None),
        ("008", "Lamp", "E", "test", "es", "B", None),
        ("9", "Rug", None, None, "us", None, None),
    ]


def test_a_part_without_any_column_that_is_read_keeps_its_rows(tmp_path: Path):
    put(tmp_path / "a.parquet", BASE | {"query": ["q"], "product_id": ["1"], "title": ["Sofa"]})
    put(tmp_path / "b.parquet", {"note": ["x", "y"]})
    assert [row["error"] for row in read(tmp_path)] == [None, "query missing", "query missing"]


def test_a_damaged_parquet_file_is_named(tmp_path: Path):
    path = tmp_path / "t.parquet"
    titles = [f"Sofa {number}" for number in range(5000)]
    put(path, {"query": ["q"] * 5000, "product_id": titles, "title": titles})
    content = bytearray(path.read_bytes())
    content[100:2000] = b"\xff" * 1900
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"source.path: .*t.parquet cannot be read.*Write the file again"):
        read(path)


def test_a_doubled_column_of_parquet_is_refused(tmp_path: Path):
    columns = [pa.array(["a"])] * 4
    pq.write_table(pa.table(columns, names=["query", "product_id", "title", "title"]), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="the column 'title' twice"):
        read(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "title",
    [
        pa.array([{"en": "Sofa", "de": "Sofa"}]),
        pa.array([[("en", "Sofa")]], pa.map_(pa.string(), pa.string())),
        pa.array([[{"lang": "en", "value": "Sofa"}]]),
    ],
)
def test_a_title_with_named_parts_is_a_failed_row(tmp_path: Path, title: pa.Array):
    put(tmp_path / "t.parquet", {"query": ["q"], "product_id": ["1"], "title": title})
    (row,) = read(tmp_path / "t.parquet")
    assert row["error"].startswith("title not a text: ")
    assert "Sofa" in row["raw"]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_keys_of_folders_are_columns(tmp_path: Path, suffix: str):
    for split, label, locale in (("train", "E", "us"), ("test", "S", "__HIVE_DEFAULT_PARTITION__")):
        path = tmp_path / f"split={split}" / f"locale={locale}" / f"grade={label}%20x" / f"part-0.{suffix}"
        put(path, {"query": [split], "product_id": ["1"], "title": ["Sofa"]})
        if suffix == "csv":
            path.write_text(f"query,product_id,title\n{split},1,Sofa\n")
        elif suffix == "jsonl":
            path.write_text(json.dumps(BASE | {"query": split, "product_id": "1"}))
    columns, labels = {"label": "grade"}, {"E x": "E", "S x": "S"}
    found = read(tmp_path, columns=columns, label_map=labels, default_locale="de")
    assert [(row["query"], row["split"], row["label"], row["locale"], row["error"]) for row in found] == [
        ("test", "test", "S", "de", None),
        ("train", "train", "E", "us", None),
    ]


def test_what_is_hidden_is_not_read(tmp_path: Path):
    for folder in ("", ".ipynb_checkpoints", "_temporary/0", "day=1", "_spark_metadata"):
        put(tmp_path / folder / "t.parquet", {"query": ["q"], "product_id": [folder or "top"], "title": ["Sofa"]})
    put(tmp_path / "_t.parquet", {"query": ["q"], "product_id": ["hidden"], "title": ["Sofa"]})
    assert [row["product_id"] for row in read(tmp_path)] == ["day=1", "top"]


@pytest.mark.parametrize(
    ("log", "name"),
    [("_delta_log/0.json", "Delta"), ("metadata/v1.metadata.json", "Iceberg"), (".hoodie/hoodie.properties", "Hudi")],
)
def test_table_formats_are_refused_with_the_way_out(tmp_path: Path, log: str, name: str):
    put(tmp_path / "shop" / "data" / "t.parquet", {"query": ["q"], "product_id": ["1"], "title": ["Sofa"]})
    (tmp_path / "shop" / log).parent.mkdir()
    (tmp_path / "shop" / log).write_text("{}")
    with pytest.raises(UserError, match=rf"is a {name} table.*format\('{name.lower()}'\).*write.parquet"):
        read(tmp_path / "shop")


def flat_esci(path: Path, version: list[Any]) -> None:
    labels = ["Exact", "Irrelevant", "S"]
    columns = {"query": ["q"] * 3, "product_id": ["1", "2", "3"], "product_title": ["Sofa"] * 3, "esci_label": labels}
    put(path, columns | {"product_locale": ["us"] * 3, "split": ["train"] * 3, "small_version": version})


@pytest.mark.parametrize("version", [[0, 1, 1], ["0", "1", "1"], [False, True, True]])
def test_flat_esci_keeps_the_rows_of_its_version_and_knows_names_of_labels(tmp_path: Path, version: list[Any]):
    flat_esci(tmp_path / "t.parquet", version)
    found = read(tmp_path / "t.parquet", source=EsciSource, version="small")
    assert [(row["product_id"], row["label"], row["error"]) for row in found] == [("2", "I", None), ("3", "S", None)]
    assert len(read(tmp_path / "t.parquet", source=EsciSource)) == 3
    with pytest.raises(UserError, match=r"source.version: .*no column 'large_version'.*take source.version out"):
        read(tmp_path / "t.parquet", source=EsciSource, version="large")


def test_advice_names_source_columns_only_where_it_exists(tmp_path: Path):
    (tmp_path / "t.csv").write_text("q,product_id,title\na,1,Sofa\n")
    for source, advice in ((TableSource, r"name yours in source\.columns"), (EsciSource, r"source\.kind = 'table'")):
        with pytest.raises(UserError, match=advice):
            read(tmp_path / "t.csv", source=source)
    for field in ("seeds", "judgements", "candidates"):
        (tmp_path / "good.csv").write_text("query,product_id,title\na,1,Sofa\n")
        with pytest.raises(UserError, match=rf"source\.{field}: .*Correct the file$"):
            read(tmp_path / "good.csv", **{field: str(tmp_path / "t.csv")})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"n": ' + "9" * 5000 + "}", "a number has thousands of digits"),
        ('{"n": ' + "[" * 1200 + "]" * 1200 + "}", "nested deeper than 100 levels"),
        ('{"attributes": ' + '{"a": ' * 900 + "1" + "}" * 901, "nested deeper than 100 levels"),
        ('{"n": ' + "[" * 100_000, "nested deeper than 100 levels"),
    ],
)
def test_a_line_with_odd_json_is_a_failed_row(tmp_path: Path, line: str, reason: str):
    good = json.dumps(BASE | {"product_id": "1"})
    (tmp_path / "t.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    assert [row["error"] for row in read(tmp_path / "t.jsonl")] == [None, f"not valid JSON: {reason}", None]


def test_tasks_on_a_cluster_read_all_rows_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mpcot.sources.filesets.TASK_ROWS", 5)
    for name, start in (("a", 0), ("b", 13)):
        table = pa.table({"product_id": list(range(start, start + 13)), "title": ["Sofa"] * 13})
        (tmp_path / "day=1").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "day=1" / f"{name}.parquet", row_group_size=3)
    files = find(str(tmp_path))
    tasks = list(tasks_of(files))
    assert tasks == [
        {"part": part, "first": first, "end": end, "row": 3 * first}
        for part in (0, 1)
        for first, end in ((0, 2), (2, 4), (4, 5))
    ]
    read = (
        batches(files, files.parts[one["part"]], ["product_id", "day"], range(one["first"], one["end"]))
        for one in tasks
    )
    rows = [row for made in read for batch in made for row in batch]
    assert rows == [{"product_id": number, "day": "1"} for number in range(26)]
