"""Queries that say the same lie in one split, whatever their locale, plural or word order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder
from mpcot.pairs.ids import query_id
from mpcot.pairs.preview import preview
from mpcot.pairs.splits import split_queries
from mpcot.pairs.stage import run
from mpcot.pairs.twins import groups_of, split_keys
from mpcot.sources.config import Kept, PairsStage, SplitSettings, TableSource
from tests.unit.mpcot.pairs.test_pairs import write

THINGS = [
    f"{colour} {thing}" for colour in ("red", "blue", "green", "grey") for thing in ("shoe", "mug", "lamp", "bag")
]
NONE: frozenset[str] = frozenset()


def rows(*queries: tuple[str, str], **more: Any) -> list[dict[str, Any]]:
    made = [{"query": query, "locale": locale, "title": "A thing", "label": "E"} | more for query, locale in queries]
    return [
        {"query_id": query_id(row["locale"], row["query"]), "product_id": f"p{n}"} | row for n, row in enumerate(made)
    ]


def twins(one: tuple[str, str], other: tuple[str, str], kept: tuple[Kept, ...] = ("text",)) -> bool:
    both = rows(one, other)
    groups = groups_of(both, kept)
    assert set(groups.values()) <= {min(row["query_id"] for row in both)}
    return len(groups) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("Running shoes", "us"), ("shoe running", "us")),
        (("running shoes", "us"), ("running shoes", "jp")),
        (("running shoes", "us"), ("shoes, RUNNING", "fr")),
        (("women’s shoe", "us"), ("womens shoes", "en_GB")),
        (("t-shirt", "uk"), ("T shirts", "us")),
        (("zapatos rojos", "es"), ("zapato rojo", "es-MX")),
        (("ｎｉｋｅ　エア", "jp"), ("エア nike", "jp")),
        (("STRASSE", "de"), ("straße", "at")),
        (("++", "us"), ("++", "uk")),
    ],
)
def test_the_same_text_is_a_twin(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert twins(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("running shoes", "us"), ("running socks", "us")),
        (("iphone 15", "us"), ("iphone 14", "us")),
        (("shoe", "jp"), ("shoes", "jp")),  # without a stemmer a plural is another word
        (("हिन्दी", "hi"), ("हन्दा", "hi")),  # the vowels are marks
    ],
)
def test_another_text_is_none(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert not twins(one, other)


def test_near_duplicates_and_products_are_kept_together_where_that_is_asked() -> None:
    near = ("waterproof hiking boots for men", "us"), ("waterproof hiking boot for man", "us")
    assert not twins(*near) and twins(*near, kept=("text", "near_duplicates"))
    shared = rows(("red shoe", "us"), ("footwear", "us"), product_id="p")
    assert not groups_of(shared, ("text",)) and len(groups_of(shared, ("text", "products"))) == 2
    with pytest.raises(ValueError, match="need text as well"):
        SplitSettings(kept_together=("products",))
    many = rows(*((thing, "us") for thing in THINGS), product_id="p")
    with pytest.raises(UserError, match="100% of the 16 labelled queries hang together by text, products"):
        groups_of(many, ("text", "products"))


def test_a_group_follows_its_least_id_and_queries_without_a_twin_stay() -> None:
    given = {f"q{n:04}": NONE for n in range(2000)}
    groups = {f"q{n:04}": f"q{n - n % 2:04}" for n in range(100)}
    for settings in (SplitSettings(), SplitSettings(unlabelled=0.3)):
        alone, together = (split_queries(given, settings, 1, own).splits for own in ({}, groups))
        assert all(together[query] == alone[groups.get(query, query)] for query in given)


def test_the_sources_own_splits_stay_and_others_follow_them() -> None:
    groups = dict.fromkeys("ab", "a") | dict.fromkeys("cde", "c")
    given = {"a": {"test"}, "b": set(), "c": {"train"}, "d": {"test"}, "e": set(), "f": {"dev"}}
    dealt = split_queries(given, SplitSettings(), 1, groups).splits
    assert dealt == {"a": "test", "b": "test", "c": "train", "d": "test", "e": "train", "f": "dev"}


def test_small_data_with_twins_has_every_split() -> None:
    groups = dict.fromkeys("ab", "a") | dict.fromkeys("cd", "c")
    for seed in range(30):
        dealt = split_queries(dict.fromkeys("abcde", NONE), SplitSettings(), seed, groups).splits
        assert set(dealt.values()) == {"train", "dev", "test"}
        assert dealt["a"] == dealt["b"] and dealt["c"] == dealt["d"]


def stage(tmp_path: Path, given: list[dict[str, Any]], **split: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    tmp_path.mkdir(exist_ok=True)
    path = write(tmp_path / "rows.jsonl", [{name: row[name] for name in row if name != "query_id"} for row in given])
    config = PairsStage(source=TableSource(path=str(path)), split=SplitSettings(train=0.4, dev=0.3, test=0.3, **split))
    folder = StageFolder(tmp_path / "run", "1-pairs")
    run(config, folder)
    manifest = folder.manifest()
    assert manifest is not None
    overlap = manifest["figures"]["overlap"]
    assert preview(config, 3).overlap == overlap
    return pq.read_table(folder.path / "pairs.parquet").to_pylist(), overlap


def test_stage_1_keeps_twins_together_and_says_what_that_changed(tmp_path: Path) -> None:
    own = [(thing, "us") for thing in THINGS]
    given = rows(*own, *((f"{thing.split()[1]}s {thing.split()[0]}", "uk") for thing in THINGS))
    pairs, overlap = stage(tmp_path / "together", given)
    splits: dict[str, set[str]] = {}
    for pair in pairs:
        splits.setdefault(split_keys(pair["query"], pair["locale"])[1], set()).add(pair["split"])
    assert len(splits) == 16 and all(len(own) == 1 for own in splits.values())
    alone, without = stage(tmp_path / "alone", given, kept_together=())
    assert without["now"] == without["by_query"] == overlap["by_query"] and without["moved_queries"] == 0
    assert overlap["by_query"]["test"]["queries"] > 0 == overlap["now"]["test"]["queries"]
    before = {pair["query_id"]: pair["split"] for pair in alone}
    moved = sum(before[pair["query_id"]] != pair["split"] for pair in pairs)
    assert 0 < moved == overlap["moved_queries"] and overlap["grouped_queries"] == 32
    assert [pair["pair_id"] for pair in pairs] == [pair["pair_id"] for pair in alone]


def test_unlabelled_twins_of_held_out_queries_are_left_out(tmp_path: Path) -> None:
    labelled = rows(*((thing, "us") for thing in THINGS))
    bare = rows(*((f"{thing}s", "uk") for thing in THINGS), label=None)
    pairs, overlap = stage(tmp_path, labelled + bare)
    train = {pair["query"] for pair in pairs if pair["split"] == "train"}
    assert {pair["query"] for pair in pairs if pair["split"] == "unlabelled"} == {f"{query}s" for query in train}
    assert overlap["now"]["test"]["queries"] == 0 < overlap["by_query"]["test"]["queries"] == 1
    failed = pq.read_table(tmp_path / "run/1-pairs/failed.parquet").to_pylist()
    assert len(failed) == 16 - len(train) and "a query with the same words" in failed[0]["reason"]


def test_own_splits_are_kept_with_a_warning_that_names_the_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {
        "train": [("red shoes", "us"), ("mug", "us")],
        "dev": [("lamp", "us")],
        "test": [("red shoe", "us"), ("bag", "us")],
    }
    given = [row for split, queries in parts.items() for row in rows(*queries, split=split)]
    pairs, overlap = stage(tmp_path, given)
    assert {pair["query"]: pair["split"] for pair in pairs}["red shoe"] == "test"
    assert overlap["own_splits"] and overlap["now"]["test"] == {"queries": 0.5, "products": 1.0}
    assert "50.0% of the test queries are learnt from as well" in " ".join(capsys.readouterr().out.split())
