"""Readers of the public data sets: ESCI, WANDS and Chorus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.base.errors import UserError
from mpcot.sources.config import ChorusSource, EsciSource, WandsSource
from mpcot.sources.files import ESCI_EXAMPLES, ESCI_PRODUCTS
from tests.helpers.source_files import put, read

SHARED = Path(__file__).parents[4].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the judged data sets are not beside the repository")


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
