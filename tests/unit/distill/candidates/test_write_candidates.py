"""Candidates of a tiny run: only of training queries, never of a pair that the run has, and in the order of asking."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.base.errors import UsageError, UserError
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import read_table, write_table
from distill.candidates import mine
from distill.candidates.order import Doubt, doubts_of, ordered
from distill.candidates.shop import Query, open_shop
from distill.candidates.write import Wish, write_candidates
from distill.config import NoExtractor, StudentConfig, TargetSettings
from distill.student.model import build_student, load_tokenizer
from distill.student.predict import predict
from mpcot.pairs.ids import pair_id, query_id
from mpcot.records import PAIR
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.clean_rows import Cleaning
from tests.helpers.tiny_shop import BINARY, NO, YES

CLEANING = Cleaning(BINARY.codes, {}, "us")
SPLITS = {"red lamp": "train", "blue mug": "unlabelled", "red case": "dev", "blue drill": "test"}
TITLES = ("red lamp", "blue lamp", "red mug", "blue mug", "red case", "blue case", "red drill", "blue drill", "shoe")


def pairs() -> list[dict[str, Any]]:
    """Every query with the product of its own name, and a French product, whose id is known here too."""
    rows = []
    for query, split in SPLITS.items():
        rows += [pair(query, title, split) for title in (query, *(TITLES if split == "test" else ()))]
    rows.append(pair("chaussure", "shoe", "train") | {"locale": "fr", "query_id": query_id("fr", "chaussure")})
    return list({row["pair_id"]: row for row in rows}.values())


def pair(query: str, title: str, split: str) -> dict[str, Any]:
    return {
        "pair_id": pair_id("us", query, title), "query_id": query_id("us", query), "product_id": title, "locale": "us",
        "query": query, "title": f"a {title}", "brand": None, "description": "d", "bullets": None,
        "attributes": [("colour", title[:4].strip())], "label": None if split == "unlabelled" else YES, "split": split,
        "ratings": None,
    }  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = StageFolder(tmp_path, "1-pairs")
    write_table(folder.path / "pairs.parquet", pa.Table.from_pylist(pairs(), PAIR))
    folder.finish({"pairs": 1}, {})
    return tmp_path


@pytest.fixture(autouse=True)
def words_as_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that knows which words of a few are in a text, without Ray."""

    def encoded(texts: Sequence[str], encoder: TargetSettings, scratch: Path) -> np.ndarray:
        words = ("red", "blue", "lamp", "mug", "case", "drill", "shoe", "chaussure")
        return np.array([[float(word in text.split()) for word in words] for text in texts])

    monkeypatch.setattr(mine, "encoded", encoded)


def written(run_dir: Path, **wish: Any) -> tuple[list[dict[str, Any]], Any]:
    own = Wish(**{"per_query": 4, "random_share": 0.5} | wish)
    encoder = TargetSettings(encoder="somebody/encoder")
    counts = write_candidates(run_dir, run_dir / "c.parquet", own, CLEANING, encoder, nullcontext)
    return read_table(run_dir / "c.parquet").to_pylist(), counts


def put(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_near_misses_come_before_random_ones_and_held_out_queries_get_none(run_dir: Path) -> None:
    rows, (counts, left_out) = written(run_dir)
    assert {row["query"] for row in rows} == {"red lamp", "blue mug"} and not left_out
    known = {row["pair_id"] for row in pairs()}
    assert not known & {pair_id(row["locale"], row["query"], row["product_id"]) for row in rows}
    lamp = [row for row in rows if row["query"] == "red lamp"]
    assert [row["origin"] for row in lamp] == ["encoder", "bm25", "random", "random"]
    assert [row["rank"] for row in lamp] == [1, 2, 3, 4]
    # Each of the near ones shares a word with the query.
    assert all({"red", "lamp"} & set(row["product_id"].split()) for row in lamp[:2])
    assert (
        dict(lamp[0]["attributes"]) == {"colour": lamp[0]["product_id"][:4].strip()} and lamp[0]["description"] == "d"
    )
    assert [row["rank"] for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4]  # the nearest of all queries come first
    assert counts["random"] == 4
    assert written(run_dir)[0] == rows


def test_a_shop_that_is_too_small_gives_what_it_has(run_dir: Path) -> None:
    rows, _ = written(run_dir, per_query=50, random_share=0.0)
    assert len(rows) == 2 * (len(TITLES) - 1)
    only = put(run_dir / "products.jsonl", [{"product_id": "red lamp", "title": "a red lamp"}])
    rows, _ = written(run_dir, products=only)
    assert [(row["query"], row["product_id"]) for row in rows] == [("blue mug", "red lamp")]


def test_a_table_of_products_takes_the_place_of_the_runs_own(run_dir: Path) -> None:
    table = [{"product_id": 7, "title": "<b>red</b> mug", "colour": "red", "price": 3}, {"product_id": "8"}]
    rows, _ = written(run_dir, products=put(run_dir / "products.jsonl", table))
    assert {(row["product_id"], row["title"]) for row in rows} == {("7", "red mug")}
    with pytest.raises(UserError, match=r"none of the 1 rows is a product \(title missing\)"):
        written(run_dir, products=put(run_dir / "products.jsonl", [table[1] | {"title": None}]))
    with pytest.raises(UserError, match=r"--products: .* has no column 'title'"):
        written(run_dir, products=put(run_dir / "products.jsonl", [{"product_id": "8"}]))


def test_search_results_are_taken_by_rank_and_others_are_counted(run_dir: Path) -> None:
    def shown(query: str, product: str, rank: int | None) -> dict[str, Any]:
        return {"query": query, "product_id": product, "rank": rank}

    table = [
        shown("Red Lamp", "blue lamp", 3), shown("red lamp", "red mug", 1), shown("red lamp", "shoe", 2),
        shown("red lamp", "red mug", 4), shown("red lamp", "red lamp", 1), shown("red case", "shoe", 1),
        shown("gold ring", "shoe", 1), shown("blue mug", "ring", 1), shown("blue mug", "red mug", None),
    ]  # fmt: skip
    rows, (counts, left_out) = written(run_dir, per_query=2, results=put(run_dir / "results.jsonl", table))
    found = [(row["query"], row["product_id"], row["rank"]) for row in rows if row["query"] == "red lamp"]
    assert found == [("red lamp", "red mug", 1), ("red lamp", "shoe", 2)]
    assert [row["product_id"] for row in rows if row["query"] == "blue mug"] == ["red mug"]
    assert counts == {"results": 3}
    assert left_out == {
        "pair is in the run": 1, "query is in dev or test": 1, "unknown query": 1, "unknown product_id": 1,
        "beyond --per-query": 1, "twice": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "gold ring", "product_id": "shoe"}, "unknown query: 1, first 'gold ring', product shoe"),
        ({"query": "red lamp", "product_id": "x"}, r"none of the 1 rows can be used \(unknown product_id: 1"),
        ({"query": "red lamp", "product": "x"}, "--results: .* has no column 'product_id'; it has query, product"),
        ({"query": "red lamp", "product_id": "shoe", "rank": "top"}, "--results: rank 'top' is not a number"),
    ],
)
def test_results_that_cannot_be_used_say_why(run_dir: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        written(run_dir, results=put(run_dir / "results.jsonl", [row]))


def test_a_run_without_pairs_and_judgements_without_a_student_are_refused(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not finished: run broadfast with --to pairs"):
        written(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="name the student with --unsure-by"):
        written(run_dir, judged=run_dir / "some.jsonl")
    with pytest.raises(UserError, match="not a student's folder"):
        written(run_dir, unsure_by=run_dir / "1-pairs")


def test_the_order_of_asking() -> None:
    query = Query(query_id("us", "lamp"), "us", "lamp")
    mined = [(query, ("us", name), rank, "bm25") for name, rank in (("a", 2), ("b", 1), ("c", 0), ("d", 3))]
    doubts = [Doubt(0.2), Doubt(0.2), Doubt(0.1), Doubt(0.0, contradicted=True)]
    assert [key[1] for _, key, _, _ in ordered(mined, doubts)] == ["d", "b", "a", "c"]
    assert [key[1] for _, key, _, _ in ordered(mined)] == ["c", "b", "a", "d"]


def test_a_student_puts_first_what_it_is_unsure_of_or_what_others_contradict(run_dir: Path, encoder: Path) -> None:
    config = StudentConfig(
        scheme=load_scheme("binary"), perspectives=("intent",), extractor=NoExtractor(), per_perspective=False,
        target_width=4, max_tokens=32, fields="title",
    )  # fmt: skip
    student, tokenizer = build_student(str(encoder), config), load_tokenizer(encoder)
    student.save(run_dir / "student", tokenizer)
    rows, _ = written(run_dir, unsure_by=run_dir / "student")
    shares = predict(student, tokenizer, rows).probabilities
    entropies = -(shares * np.log(shares)).sum(axis=1)
    assert len(rows) == 8 and (np.diff(entropies) <= 1e-6).all()
    last, said = rows[-1], BINARY.codes[shares[-1].argmin()]
    assert {said} < {YES, NO}
    line = {"query": last["query"], "product_id": last["product_id"], "verdict": said}
    first = written(run_dir, unsure_by=run_dir / "student", judged=put(run_dir / "j.jsonl", [line]))[0][0]
    assert (first["query"], first["product_id"]) == (last["query"], last["product_id"])
    # What counts is the answer that is served: with a bias towards what was said, nothing contradicts it.
    student.config = config.model_copy(update={"label_bias": tuple(9.0 * (code == said) for code in BINARY.codes)})
    student.save(run_dir / "student", tokenizer)
    shop = open_shop(run_dir / "1-pairs/pairs.parquet", None, CLEANING)
    mined = [(next(iter(shop.queries.values())), next(iter(shop.products)), 0, "bm25")]
    verdicts = {pair_id(key[0], query.text, key[1]): [said] for query, key, _, _ in mined}
    (doubt,) = doubts_of(mined, shop, run_dir / "student", verdicts)
    assert not doubt.contradicted and doubt.entropy < 0.1
