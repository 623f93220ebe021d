"""`broadfast check-source` shows what stage 1 will read, and writes nothing."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mpcot.sources.columns import likely_names
from tests.helpers.command import broadfast, text

SHOP = "query,product_id,title,label\n" + "".join(
    f'query {number // 4},p{number},"""Lamp"", no. {number}",{"ESCI"[number % 4]}\n' for number in range(40)
)


def look(folder: Path, path: Path, *more: str) -> tuple[int, str]:
    config = folder / "shop.toml"
    config.write_text(f'name = "shop"\n[source]\nkind = "table"\npath = "{path}"\n[teacher]\nmodel = "none"\n')
    found = broadfast("check-source", config, *more)
    assert sorted(one.name for one in folder.iterdir()) == sorted({"shop.toml", path.name}), "nothing is written"
    return found.exit_code, text(found)


def test_columns_rows_labels_and_splits_are_shown(tmp_path: Path, wide: None) -> None:
    (tmp_path / "t.csv").write_text(SHOP + "query 1,,Rug,E\nquery 1,p1,Rug,X\nq,open,Rug\n", encoding="utf-8")
    code, said = look(tmp_path, tmp_path / "t.csv")
    assert code == 0
    assert "t.csv: commas between fields, fields may be in quotes" in said
    assert "the first of 43 rows" in said
    assert '│ 0 │ query 0 │ p0 │ "Lamp", no. 0 │ us │ E │' in said
    assert "│ 1 │ product_id missing │ row 40: product_id missing │" in said
    assert "│ 1 │ unknown label │ row 41: unknown label: 'X', the scheme has E, S, C, I │" in said
    assert "│ 1 │ wrong number of fields │ row 42: wrong number of fields: 3, the header has 4 │" in said
    assert "│ E │ 10 │ 25.0% │" in said
    assert "│ unlabelled │ 0 │" in said


def test_types_of_parts_and_keys_of_folders_are_shown(tmp_path: Path, wide: None) -> None:
    for place, ids in enumerate(([1, 2], ["3", "4"])):
        folder = tmp_path / "parts" / f"label={'ES'[place]}"
        folder.mkdir(parents=True)
        queries = {"query": [f"a{place}", f"b{place}"], "title": ["Lamp", "Rug"]}
        pq.write_table(pa.table(queries | {"product_id": ids}), folder / "part.parquet")
    code, said = look(tmp_path, tmp_path / "parts")
    assert code == 0
    assert "part.parquet and 1 more: parquet" in said
    assert "│ product_id │ int64 or string │" in said
    assert "│ label │ text, from the names of folders │" in said


def test_types_of_jsonl_are_shown(tmp_path: Path, wide: None) -> None:
    (tmp_path / "t.jsonl").write_text('{"query": "a", "n": 1}\n{"query": null, "n": [1.5]}\n', encoding="utf-8")
    code, said = look(tmp_path, tmp_path / "t.jsonl")
    assert code == 1
    assert "│ query │ text or empty │ │ n │ whole number or list │" in said


def test_missing_columns_are_guessed_and_the_command_fails(tmp_path: Path, wide: None) -> None:
    path = tmp_path / "t.csv"
    path.write_text("Search Term,sku,product_name,esci_label,price\nlamp,1,Lamp,E,2\n", encoding="utf-8")
    code, said = look(tmp_path, path)
    assert code == 1
    names = 'query = "Search Term" product_id = "sku" title = "product_name" label = "esci_label"'
    assert f"[source.columns] {names} the run would stop: source.path: " in said


def test_a_run_that_would_stop_says_why_beside_its_rows(tmp_path: Path, wide: None) -> None:
    (tmp_path / "t.csv").write_text("query,product_id,title\nlamp,1,Lamp\n", encoding="utf-8")
    code, said = look(tmp_path, tmp_path / "t.csv")
    assert code == 1
    assert "the first of 1 rows" in said
    assert "the run would stop: source: no row has a label" in said


def test_only_free_columns_are_guessed() -> None:
    columns = ["query", "name", "id", "query_id", "rating", "product_color", "colour"]
    assert likely_names(columns) == {"product_id": "id", "title": "name", "label": "rating"}
    assert likely_names(columns, {"title", "name"}) == {"product_id": "id", "label": "rating"}
    assert likely_names(["qurey", "Produkt-ID", "titel"]) == {
        "query": "qurey",
        "product_id": "Produkt-ID",
        "title": "titel",
    }
