"""Readers of files: formats, column and label maps, the public data sets, and what a broken file says."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from cluster.base.errors import UserError
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.clean_texts import attribute_map, bullets_text, clean_text, plain_text
from mpcot.sources.config import ChorusSource, EsciSource, SourceSettings, TableSource, WandsSource
from mpcot.sources.files import ESCI_EXAMPLES, ESCI_PRODUCTS
from mpcot.sources.open_source import read_source

SHARED = Path(__file__).parents[4].parent / "shared" / "data"
ROWS = [{"query": f"q{i}", "product_id": str(i), "title": f"Thing, {i}", "label": "E"} for i in range(5)]
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the judged data sets are not beside the repository")


def read(source: Any, scheme: str = "esci") -> list[dict[str, Any]]:
    return read_source(source, load_scheme(scheme)).rows.to_pylist()


def put(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else delimiter)
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


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


def test_cleaning():
    assert clean_text("  a\u0000\tb\n\ufeff ") == "a b"
    assert clean_text(float("nan")) is None
    assert clean_text(3.0) == "3"
    assert clean_text("\ud800x") == "x"
    assert clean_text("grün".encode()) == "grün"
    assert plain_text("x" * 3000, 2000) == "x" * 2000


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("<p>Soft<br/>and <b>warm</b>.</p>", "Soft and warm."),
        ("H<sub>2</sub>O &amp; CO&#8322; &ndash; Caf&eacute;", "H2O & CO₂ – Café"),
        ("&lt;ul&gt;&lt;li&gt;one&lt;/li&gt;&lt;/ul&gt;", "one"),
        (
            "<85 Hz, 5 < 6 > 4, adapter <for iPhone>, AT&T &copy2",
            "<85 Hz, 5 < 6 > 4, adapter <for iPhone>, AT&T &copy2",
        ),
        ('a<script type="x">if (a < b) {}</script><!-- note --><style>p {}</style> b', "a b"),
        ('<a href="x">link</a><img src="y"/>', "link"),
        ("<BR>a</BR>b < br", "a b < br"),
        ("<p></p>&nbsp;", None),
        (["one", None, "two"], "one two"),
        ("<!--" * 100_000 + "<b" * 100_000, "<!--" * 100_000 + "<b" * 100_000),
    ],
)
def test_html_goes_and_what_only_looks_like_it_stays(given: Any, plain: str | None):
    assert plain_text(given) == plain


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["Waterproof", None, " ", "it's <b>light</b>"], "Waterproof • it's light"),
        ("Waterproof\nlight\n\n", "Waterproof • light"),
        ("<ul><li>Waterproof</li><li>light</li></ul>", "Waterproof • light"),
        ('["Waterproof", "light"]', "Waterproof • light"),
        ("[2 pack] light", "[2 pack] light"),
        ("[" * 100_000, "[" * 2000),
        (None, None),
        ([], None),
    ],
)
def test_bullets_from_lists_lines_and_html(given: Any, text: str | None):
    assert bullets_text(given) == text
    assert bullets_text(text) == text


@pytest.mark.parametrize(
    ("given", "attributes"),
    [
        ('{"colour": "r&eacute;d", "hdmi": true, "weight": 2.0, "none": null, "": "x"}', "colour hdmi weight"),
        ({"colour": "réd", "hdmi": True, "weight": 2.0, "none": None}, "colour hdmi weight"),
        ([("colour", "réd"), ("hdmi", "yes"), ("weight", "2")], "colour hdmi weight"),
        ({"colour": "réd", "long": "x" * 4000}, "colour"),
        ("{}", None),
        (" ", None),
        (None, None),
        ([], None),
    ],
)
def test_attributes_from_objects_json_and_arrow(given: Any, attributes: str | None):
    known = {"colour": "réd", "hdmi": "yes", "weight": "2"}
    assert attribute_map(given) == (attributes and {name: known[name] for name in attributes.split()})
    assert attribute_map({"ports": ["usb", "hdmi"], "size": {"w": 2, "h": None}}) == {
        "ports": "usb, hdmi",
        "size": "w: 2",
    }


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


def test_official_esci_is_joined_by_product_and_locale(tmp_path: Path):
    def example(i: int, locale: str, label: str, split: str, small: int = 1) -> dict[str, Any]:
        keys = {
            "query": f"q{i}",
            "query_id": i,
            "product_id": "P1",
            "product_locale": locale,
            "esci_label": label,
        }
        return keys | {"split": split, "small_version": small, "large_version": 1}

    examples = [
        example(0, "us", "E", "train"),
        example(1, "es", "S", "test"),
        example(2, "us", "I", "train", 0),
    ]
    examples.append(example(3, "jp", "E", "test"))
    products = [
        {"product_id": "P1", "product_locale": loc, "product_title": f"Title {loc}", "product_color": "red"}
        | {"product_description": "<b>soft</b>", "product_bullet_point": "one\ntwo", "product_brand": "B"}
        for loc in ("es", "us")
    ]
    put(tmp_path / ESCI_EXAMPLES, examples)
    with pytest.raises(UserError, match=ESCI_PRODUCTS):
        read(EsciSource(path=str(tmp_path)))
    put(tmp_path / ESCI_PRODUCTS, products)
    rows = read(EsciSource(path=str(tmp_path), version="small"))
    assert [(r["query"], r["title"], r["split"]) for r in rows[:2]] == [
        ("q0", "Title us", "train"),
        ("q1", "Title es", "test"),
    ]
    assert [rows[0][name] for name in ("description", "bullets", "attributes")] == [
        "soft", "one • two", [("colour", "red")]
    ]  # fmt: skip
    assert rows[2]["error"] == "product not in the products file"
    assert [r["query"] for r in read(EsciSource(path=str(tmp_path), locales=("us",)))] == ["q0", "q2"]


def test_wands_labels_are_mapped(tmp_path: Path):
    put(tmp_path / "query.tsv", [{"query_id": 1, "query": "blue sofa", "query_class": "Sofas"}])
    put(
        tmp_path / "product.tsv",
        [
            {"product_id": i, "product_name": f"Sofa {i}", "product_class": "Sofas"}
            | {"product_description": "Soft", "product_features": "color : blue|legs : 4|color : red|sturdy"}
            for i in range(3)
        ],
    )
    labels = ("Exact", "Partial", "Irrelevant")
    put(
        tmp_path / "label.tsv",
        [{"id": i, "query_id": 1, "product_id": i, "label": x} for i, x in enumerate(labels)],
    )
    for path in tmp_path.glob("*.tsv"):
        path.rename(path.with_suffix(".csv"))
    rows = read(WandsSource(path=str(tmp_path)), "graded")
    assert [r["label"] for r in rows] == ["3", "1", "0"]
    assert {r["query"] for r in rows} == {"blue sofa"}
    assert rows[0]["title"] == "Sofa 0"
    assert rows[0]["description"] == "Soft"
    assert dict(rows[0]["attributes"]) == {"class": "Sofas", "color": "blue, red", "legs": "4", "features": "sturdy"}
    binary = read(
        WandsSource(path=str(tmp_path), label_map={"Exact": "1", "Partial": "0", "Irrelevant": "0"}), "binary"
    )
    assert {r["error"] for r in binary} == {None}


def test_chorus_attributes_are_kept_and_a_lost_product_a_failed_row(tmp_path: Path):
    judged = [
        {"query": "tv", "product_id": "1", "rating": 3, "rater_ratings": [2.0, 3.0, 3.0]},
        {"query": "tv", "product_id": "9", "rating": 0},
    ]
    attributes = {"t_product_colour": "Black", "b_hdmi": True, "n_weight": 2.0, "t_none": None}
    product = {
        "product_id": "1",
        "title": "TV",
        "brand": "LG",
        "short_description": "Nice",
        "attributes": attributes,
    }
    put(tmp_path / "judgments.jsonl", judged)
    put(tmp_path / "products.jsonl", [product])
    rows = read(ChorusSource(path=str(tmp_path)), "graded")
    assert rows[0]["description"] == "Nice"
    assert rows[0]["attributes"] == [("product colour", "Black"), ("hdmi", "yes"), ("weight", "2")]
    assert [(r["label"], r["ratings"]) for r in rows] == [("3", ["2", "3", "3"]), ("0", None)]
    assert rows[1]["error"] == "product not in the products file"


@pytest.mark.parametrize(("suffix", "given"), [("jsonl", ["2", 3]), ("parquet", ["2", "3"]), ("csv", "2; 3")])
def test_the_ratings_of_several_people_are_kept_as_labels(tmp_path: Path, suffix: str, given: Any):
    path = put(tmp_path / f"t.{suffix}", [ROWS[0] | {"label": "3", "ratings": given}])
    (row,) = read(TableSource(path=str(path), label_map={"3": "E", "2": "S"}))
    assert (row["label"], row["ratings"], row["error"]) == ("E", ["S", "E"], None)
    (row,) = read(TableSource(path=str(path), label_map={"3": "E"}))
    assert row["error"] == "unknown rating: '2', the scheme has E, S, C, I"


@needs_data
@pytest.mark.parametrize(("locales", "count"), [(None, 2306), (("us",), 1551)])
def test_esci_sample_reads_whole(locales: tuple[str, ...] | None, count: int):
    rows = read(EsciSource(path=str(SHARED / "esci" / "pairs.jsonl"), locales=locales))
    assert len(rows) == count
    assert {r["error"] for r in rows} == {None}
    assert {r["label"] for r in rows} == set("ESCI")


@needs_data
def test_chorus_reads_whole():
    rows = read(ChorusSource(path=str(SHARED / "chorus")), "graded")
    assert len(rows) == 2680
    assert {r["error"] for r in rows} == {None}
    assert {r["label"] for r in rows} == set("0123")
    assert sum(r["ratings"] is not None for r in rows) == 2323
