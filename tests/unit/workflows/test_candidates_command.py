"""`broadfast candidates` over a run's own pairs, and a run that takes what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.base.tables import read_table
from tests.helpers.command import broadfast, text


def test_results_become_unlabelled_pairs_of_another_run(
    config_file: Path, tmp_path: Path, without_ray: None, wide: None
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert broadfast("pairs", config_file, "--out", first).exit_code == 0
    pairs = read_table(first / "1-pairs/pairs.parquet").to_pylist()
    products = sorted({pair["product_id"] for pair in pairs})
    queries = {pair["query"] for pair in pairs}
    shown = [{"query": query, "product_id": product} for query in sorted(queries) for product in products]
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(row) + "\n" for row in shown), encoding="utf-8")
    done = broadfast("candidates", first, "--per-query", 3, "--results", results)
    assert done.exit_code == 0, done.output
    train = {pair["query"] for pair in pairs if pair["split"] in ("train", "unlabelled")}
    assert f"candidates.parquet: {3 * len(train)} of results" in text(done) and "query is in dev or test:" in text(done)
    take = ("--set", f"source.candidates={first / 'candidates.parquet'}", "--out", second)
    assert f"{60 + 3 * len(train)} pairs" in text(broadfast("run", config_file, *take, "--dry-run"))
    assert broadfast("pairs", config_file, *take).exit_code == 0
    after = read_table(second / "1-pairs/pairs.parquet").to_pylist()
    assert after[:60] == pairs and len(after) == 60 + 3 * len(train)
    assert {(row["split"], row["label"]) for row in after[60:]} == {("unlabelled", None)}
    assert broadfast("verify", second).exit_code == 0
    # The file is part of what the stage depends on.
    (first / "candidates.parquet").write_bytes((second / "1-pairs/pairs.parquet").read_bytes())
    again = broadfast("pairs", config_file, *take)
    assert again.exit_code == 1 and "content" in text(again)


def test_wrong_calls_say_what_is_wrong(tmp_path: Path, wide: None) -> None:
    none = broadfast("candidates", tmp_path, "--per-query", 0)
    assert none.exit_code == 2 and "--per-query" in text(none) and "greater than or equal to 1" in text(none)
    nothing = broadfast("candidates", tmp_path, "--per-query", 1)
    assert nothing.exit_code != 0 and "is not a run folder" in text(nothing)
