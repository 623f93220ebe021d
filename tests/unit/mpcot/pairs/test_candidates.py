"""`source.candidates`: further pairs follow their query, are never pairs of dev or test, and never twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder
from mpcot.asking.generate import select_pairs
from mpcot.config import JudgeSettings
from mpcot.pairs.ids import pair_id
from mpcot.pairs.settle_rows import KNOWN
from mpcot.pairs.stage import check, plan_rows, run
from mpcot.sources.config import CatalogueSource, PairsStage, SplitSettings, TableSource
from tests.unit.mpcot.pairs.test_pairs import GOOD, write

SPLITS = SplitSettings(train=0.5, dev=0.25, test=0.25)


def stage(tmp_path: Path, candidates: list[dict[str, Any]]) -> StageFolder:
    paths = write(tmp_path / "pairs.jsonl", GOOD), write(tmp_path / "candidates.jsonl", candidates)
    source = TableSource(path=str(paths[0]), candidates=str(paths[1]))
    folder = StageFolder(tmp_path / "run", "1-pairs")
    run(PairsStage(source=source, split=SPLITS), folder)
    return folder


def more(query: int, product: str, **columns: Any) -> dict[str, Any]:
    return {"query": f"Query {query}", "product_id": product, "title": f"The {product}", "brand": "B"} | columns


def test_candidates_are_unlabelled_pairs_of_training_queries(tmp_path: Path) -> None:
    # Every query gets the same new product, labelled and split by somebody, and one that it has already.
    given = [more(n, "new", label="E", split="test", ratings="E; S") for n in range(20)]
    given += [more(n, f"p{3 * n}") for n in range(20)] + [more(99, "new")]
    folder = stage(tmp_path, given)
    rows = pq.read_table(folder.path / "pairs.parquet").to_pylist()
    split = {row["query"].casefold(): row["split"] for row in rows if row["label"]}
    new = {row["query"].casefold(): row for row in rows if row["product_id"] == "new"}
    train = {query for query, name in split.items() if name == "train"}
    assert 0 < len(train) < 20 and set(new) == train | {"query 99"}
    for row in new.values():
        assert (row["split"], row["label"], row["ratings"], row["brand"]) == ("unlabelled", None, None, "B")
    assert sum(row["label"] is not None for row in rows) == len(GOOD)
    failed = {row["source_row"]: row["reason"] for row in pq.read_table(folder.path / "failed.parquet").to_pylist()}
    assert {failed[80 + n] for n in range(20)} == {f"{KNOWN}: in source row {3 * n}" for n in range(20)}
    assert sorted(row for row in failed if row < 80) == [60 + n for n in range(20) if f"query {n}" not in train]
    manifest = folder.manifest()
    assert manifest is not None
    counts = manifest["counts"]
    assert (counts["read"], counts["pairs"], counts["candidates"]) == (101, 60 + len(new), len(new))
    assert counts["pairs"] + counts["failed"] == counts["read"]


def test_candidates_come_after_the_source_in_the_order_of_their_file(tmp_path: Path) -> None:
    queries = [n for n in range(20) if n % 2]
    rows = pq.read_table(stage(tmp_path, [more(n, "new") for n in reversed(queries)]).path / "pairs.parquet")
    found = [row["query"] for row in rows.to_pylist()[len(GOOD) :]]
    assert found == [name for name in (f"Query {n}" for n in reversed(queries)) if name in found]


def test_a_budget_takes_the_first_unlabelled_pairs_and_all_others(tmp_path: Path) -> None:
    path = stage(tmp_path, [more(99, f"x{9 - n}") for n in range(6)]).path / "pairs.parquet"
    for budget, products in ((2, ["x9", "x8"]), (0, []), (None, [f"x{9 - n}" for n in range(6)])):
        chosen = [row for batch in select_pairs(path, JudgeSettings(budget_pairs=budget)) for row in batch.to_pylist()]
        assert [row["product_id"] for row in chosen if row["split"] == "unlabelled"] == products
        assert sum(row["label"] is not None for row in chosen) == len(GOOD)
    least_of_each = JudgeSettings(budget_pairs=2, pairs_per_split=1)
    some = [row for batch in select_pairs(path, least_of_each) for row in batch.to_pylist()]
    least = min(pair_id("us", "query 99", f"x{9 - n}") for n in range(6))
    assert [row["pair_id"] for row in some if row["split"] == "unlabelled"] == [least] and len(some) == 4


def test_a_budget_for_pairs_that_are_not_judged_is_refused() -> None:
    with pytest.raises(ValueError, match="add unlabelled to splits"):
        JudgeSettings(budget_pairs=2, splits=("train", "dev"))


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source\.candidates: .* has no column 'title'; it has query, product_id"):
        stage(tmp_path, [{"query": "Query 1", "product_id": "x"}])
    missing = CatalogueSource(candidates=str(tmp_path / "nowhere.parquet"))
    with pytest.raises(UserError, match=r"source\.candidates: .*nowhere\.parquet' does not exist"):
        check(PairsStage(source=missing))


def test_planned_rows_count_candidates(tmp_path: Path) -> None:
    pairs = stage(tmp_path, [more(1, "new")]).path / "pairs.parquet"
    table = PairsStage(source=CatalogueSource(pairs=100, candidates=str(pairs)))
    assert plan_rows(table) == 100 + pq.read_metadata(pairs).num_rows
    text = CatalogueSource(pairs=100, candidates=str(tmp_path / "candidates.jsonl"))
    assert plan_rows(PairsStage(source=text)) is None
