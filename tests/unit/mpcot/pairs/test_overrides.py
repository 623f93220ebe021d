"""Corrected labels take the place of the source's own in stage 1, and every one of them is accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder
from mpcot.pairs.ids import pair_id
from mpcot.pairs.stage import check, run
from mpcot.sources.config import CatalogueSource, PairsStage, TableSource

ROWS = [
    {"query": f"query {n // 3}", "product_id": f"p{n}", "title": f"Product {n}", "label": "ESCI"[n % 4]}
    for n in range(60)
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def corrected(tmp_path: Path, overrides: list[Any], rows: list[Any] = ROWS, **more: Any) -> tuple[dict, dict]:
    """Run stage 1 with these overrides; return the label of each product, and the manifest."""
    path = write(tmp_path / "overrides.jsonl", overrides)
    source = TableSource(path=str(write(tmp_path / "rows.jsonl", rows)), overrides=str(path), **more)
    folder = StageFolder(tmp_path / "run", "1-pairs")
    run(PairsStage(source=source), folder)
    manifest = folder.manifest()
    assert manifest is not None
    return {p["product_id"]: p["label"] for p in pq.read_table(folder.path / "pairs.parquet").to_pylist()}, manifest


def test_corrected_labels_are_used_and_counted(tmp_path: Path) -> None:
    by_id = {"pair_id": pair_id("us", "query 0", "p0"), "label": "S"}
    by_text = {"query": "QUERY 0", "product_id": "p1", "label": "S"}
    unknown = {"query": "query 0", "product_id": "none", "label": "I"}
    labels, manifest = corrected(tmp_path, [by_id, by_text, unknown])
    assert (labels["p0"], labels["p1"], labels["p2"]) == ("S", "S", "C")
    assert manifest["counts"]["corrected"] == 1
    assert manifest["figures"]["overrides"] == {
        "changed": 1, "unchanged": 1, "unknown": 1, "named": ["'query 0', product none"],
    }  # fmt: skip


def test_a_correction_settles_a_conflict_and_labels_an_unlabelled_pair(tmp_path: Path) -> None:
    twice = [{"query": "query 1", "product_id": "x", "title": "A thing", "label": label} for label in "ES"]
    bare = {"query": "query 1", "product_id": "y", "title": "A thing"}
    rows = [{"query": "query 1", "product_id": name, "label": "I"} for name in "xy"]
    labels, manifest = corrected(tmp_path, rows, [*ROWS, *twice, bare])
    assert labels["x"] == labels["y"] == "I"
    assert manifest["counts"]["failed"] == 1, "the second row of x is a duplicate now"
    assert manifest["figures"]["overrides"]["changed"] == 2


def test_labels_may_be_those_of_the_source(tmp_path: Path) -> None:
    rows = [row | {"label": f"grade {row['label']}"} for row in ROWS]
    mapped = {f"grade {code}": code for code in "ESCI"}
    given = [{"query": "query 0", "product_id": "p0", "label": "grade I"}]
    given += [{"query": "query 0", "product_id": "p1", "label": "C"}]
    labels, _ = corrected(tmp_path, given, rows, label_map=mapped)
    assert (labels["p0"], labels["p1"]) == ("I", "C")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"query": "query 0", "product_id": "p0", "label": "Z"}], "row 1 .'query 0', product p0.: label 'Z'"),
        (
            [{"query": "query 0", "product_id": "p0", "label": code} for code in "ES"],
            "'query 0', product p0 has the labels E and S. Keep one",
        ),
        ([{"query": "other", "product_id": "p0", "label": "E"}], "none of the 1 pairs is in the source"),
        ([{"product_id": "p0", "label": "E"}], "source.overrides: .* has no column 'query'"),
        ([{"query": "query 0", "product_id": "p0", "label": "E"}, [1]], "row 2 .not a JSON object."),
    ],
)
def test_what_cannot_be_used_stops_and_is_named(tmp_path: Path, given: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        corrected(tmp_path, given)


def test_the_catalogue_can_be_corrected_too_and_a_missing_file_stops_before_the_run(tmp_path: Path) -> None:
    plain = StageFolder(tmp_path / "plain", "1-pairs")
    run(PairsStage(source=CatalogueSource(pairs=60)), plain)
    first = pq.read_table(plain.path / "pairs.parquet").to_pylist()[0]
    other = "I" if first["label"] == "E" else "E"
    path = write(tmp_path / "overrides.jsonl", [{"pair_id": first["pair_id"], "label": other}])
    folder = StageFolder(tmp_path / "run", "1-pairs")
    run(PairsStage(source=CatalogueSource(pairs=60, overrides=str(path))), folder)
    labels = {p["pair_id"]: p["label"] for p in pq.read_table(folder.path / "pairs.parquet").to_pylist()}
    assert labels[first["pair_id"]] == other
    with pytest.raises(UserError, match=r"source\.overrides"):
        check(PairsStage(source=CatalogueSource(overrides=str(tmp_path / "none.jsonl"))))
