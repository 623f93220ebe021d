"""Readers of tables: formats, column and label maps, and what a broken file says."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from cluster.base.errors import UserError
from mpcot.sources.config import SourceSettings, TableSource, WandsSource
from tests.helpers.source_files import put, read

ROWS = [{"query": f"q{i}", "product_id": str(i), "title": f"Thing, {i}", "label": "E"} for i in range(5)]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str):
    rows = read(TableSource(path=str(put(tmp_path / f"t.{suffix}", ROWS))))
    assert [(r["query"], r["title"], r["label"]) for r in rows] == [(f"q{i}", f"Thing, {i}", "E") for i in range(5)]
    assert [r["source_row"] for r in rows] == list(range(5))
    assert {r["error"] for r in rows} == {None}


def test_column_map_label_map_and_extra_columns(tmp_path: Path):
    theirs = [{"q": "tv", "sku": 7, "name": "TV", "grade": 1.0, "lang": "DE", "colour": "red", "bullets": "Big"}]
    columns = {"query": "q", "product_id": "sku", "title": "name", "label": "grade", "locale": "lang"}
    path = put(tmp_path / "t.parquet", theirs)
    (row,) = read(TableSource(path=str(path), columns=columns, label_map={"1": "E"}))
    assert (row["product_id"], row["label"], row["locale"]) == ("7", "E", "de")
    assert (row["description"], row["bullets"], row["attributes"]) == (None, "Big", [("colour", "red")])


def test_limit_comes_after_locales_and_keeps_order(tmp_path: Path):
    rows = [r | {"locale": "us" if i % 2 else "es"} for i, r in enumerate(ROWS)]
    path = put(tmp_path / "t.jsonl", rows)
    got = read(TableSource(path=str(path), locales=("US",), limit=2))
    assert [r["query"] for r in got] == ["q1", "q3"]


def test_folder_gzip_and_uri(tmp_path: Path):
    put(tmp_path / "b.jsonl", ROWS[3:])
    lines = "\n".join(json.dumps(r) for r in ROWS[:3])
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "notes.txt").write_text("not data")
    got = read(TableSource(path=f"file://{tmp_path}"))
    assert [r["query"] for r in got] == [f"q{i}" for i in range(5)]


def test_over_long_csv_field_is_read(tmp_path: Path):
    path = put(tmp_path / "t.csv", [*ROWS, ROWS[0] | {"product_id": "big", "title": "x" * 1_000_000}])
    assert read(TableSource(path=str(path)))[-1]["error"] == "title too long: 1000000 characters, limit 2000"


def test_ragged_csv_line_is_a_failed_row(tmp_path: Path):
    path = put(tmp_path / "t.csv", ROWS)
    path.write_text(path.read_text() + "only,two\n", encoding="utf-8")
    assert read(TableSource(path=str(path)))[-1]["error"].startswith("wrong number of fields: 2")
    assert read(TableSource(path=str(path), locales=("de",)))[-1]["error"].startswith("wrong number of fields: 2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        ('{"query": "caf\u00e9"}'.encode("latin-1"), "byte 14 cannot be decoded.*iconv"),
        ('{"query": "a"}'.encode("utf-16"), "looks like UTF-16"),
        (
            b'{"search": "a", "product_id": 1, "title": "b"}',
            "no column 'query'.*it has search, product_id, title",
        ),
    ],
)
def test_broken_jsonl_names_the_file_and_the_way_out(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "t.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(TableSource(path=str(path)))
    assert "source.path" in str(caught.value)
    assert str(path) in str(caught.value)


def test_wrong_byte_far_into_a_file_is_found_at_its_offset(tmp_path: Path):
    path = tmp_path / "t.csv"
    head = b"query,product_id,title\n" + b"a,b,\xe2\x82\xac\n" * 700_000
    path.write_bytes(head + b"a,b,\xff\n")
    with pytest.raises(UserError, match=f"byte {len(head) + 4} "):
        read(TableSource(path=str(path)))


def test_header_only_empty_folder_wrong_format_and_renamed_column(tmp_path: Path):
    (tmp_path / "h.csv").write_text("query,product_id,title\n")
    (tmp_path / "x.parquet").write_bytes(b"not parquet at all")
    (tmp_path / "t.dat").write_text("a")
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"query": pa.array([], pa.string())}), tmp_path / "none.parquet")
    for name, message in (
        ("h.csv", "only a header"),
        ("x.parquet", "not a readable parquet"),
        ("t.dat", "source.format"),
        ("empty", "has no file"),
        ("none.parquet", "has no rows"),
    ):
        with pytest.raises(UserError, match=message):
            read(TableSource(path=str(tmp_path / name)))
    path = put(tmp_path / "t.jsonl", ROWS)
    with pytest.raises(UserError, match=r"source.columns: .*no column 'grade'; it has query"):
        read(TableSource(path=str(path), columns={"label": "grade"}))


def test_the_first_file_may_be_empty_and_the_first_lines_without_an_optional_column(tmp_path: Path):
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "part-0.jsonl").write_text("")
    plain = [{name: row[name] for name in ("query", "product_id", "title")} for row in ROWS]
    late = plain[0] | {"product_id": "late", "rating": "E"}
    put(folder / "part-1.jsonl", [plain[0] | {"product_id": str(number)} for number in range(300)] + [late])
    found = read(TableSource(path=str(folder), columns={"label": "rating"}))
    assert [row["label"] for row in found] == [None] * 300 + ["E"]


def test_config_names_what_it_does_not_know():
    adapter: TypeAdapter[Any] = TypeAdapter(SourceSettings)
    assert isinstance(adapter.validate_python({"kind": "wands", "path": "x"}), WandsSource)
    for bad in (
        {"kind": "amazon", "path": "x"},
        {"kind": "table", "path": "x", "colums": {}},
        {"kind": "table", "path": "x", "columns": {"name": "title"}},
        {"kind": "table"},
        {"kind": "esci", "path": "x", "limit": 0},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)


@pytest.mark.parametrize("given", ["red, small", '{"colour": "re', '["red"]', 7, '{"n": ' + "9" * 5000 + "}"])
def test_what_is_no_object_is_no_attributes(tmp_path: Path, given: Any):
    path = put(tmp_path / "t.jsonl", [*ROWS, ROWS[0] | {"product_id": "bad", "attributes": given}])
    *good, bad = read(TableSource(path=str(path)))
    assert bad["error"].startswith("attributes not a JSON object: ")
    assert {row["error"] for row in good} == {None}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_table_brings_attributes_and_bullets_in_columns_that_the_settings_name(tmp_path: Path, suffix: str):
    told = {"facets": {"colour": "red", "size": None}, "points": ["one", "two"]}
    flat = {"facets": '{"colour": "red"}', "points": '["one", "two"]'}
    path = put(tmp_path / f"t.{suffix}", [row | (flat if suffix == "csv" else told) for row in ROWS])
    rows = read(TableSource(path=str(path), columns={"attributes": "facets", "bullets": "points"}))
    assert [(row["attributes"], row["bullets"]) for row in rows] == [([("colour", "red")], "one • two")] * 5


def test_a_map_column_of_parquet_is_read(tmp_path: Path):
    maps = pa.array([[("colour", "red")], None, [], [("a", "1"), ("b", None)], None], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.Table.from_pylist(ROWS).append_column("attributes", maps), tmp_path / "t.parquet")
    rows = read(TableSource(path=str(tmp_path / "t.parquet")))
    assert [row["attributes"] for row in rows] == [[("colour", "red")], None, None, [("a", "1")], None]


@pytest.mark.parametrize(("suffix", "given"), [("jsonl", ["2", 3]), ("parquet", ["2", "3"]), ("csv", "2; 3")])
def test_the_ratings_of_several_people_are_kept_as_labels(tmp_path: Path, suffix: str, given: Any):
    path = put(tmp_path / f"t.{suffix}", [ROWS[0] | {"label": "3", "ratings": given}])
    (row,) = read(TableSource(path=str(path), label_map={"3": "E", "2": "S"}))
    assert (row["label"], row["ratings"], row["error"]) == ("E", ["S", "E"], None)
    (row,) = read(TableSource(path=str(path), label_map={"3": "E"}))
    assert row["error"] == "unknown rating: '2', the scheme has E, S, C, I"
