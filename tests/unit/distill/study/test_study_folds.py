"""Queries that say the same lie in one fold, and records that were begun with other folds keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.base.stage_folder import read_json, write_json
from cluster.base.tables import read_table, write_table
from distill.study.data import HEADER, open_data
from distill.study.folds import assign_folds, fold_folder
from distill.study.records import Records
from mpcot.records import PAIR
from tests.helpers.study_run import shop_run, study_config


def shop_with_twins(folder: Path) -> tuple[Path, set[str]]:
    """Return a run of which two train or test queries, in different folds of three, are twins; and their ids."""
    run = shop_run(folder)
    path = run / "1-pairs/pairs.parquet"
    rows = read_table(path).to_pylist()
    folds = assign_folds(rows, 3, 13)
    twins = {fold: query for query, fold in folds.items() if fold < 2}
    said = {query: ("Red shoes", "shoe red")[fold] for fold, query in twins.items()}
    for row in rows:
        row["query"] = said.get(row["query_id"], row["query_id"])
    write_table(path, type(read_table(path)).from_pylist(rows, PAIR))
    return run, set(twins.values())


def opened(encoder: Path, run: Path, records: Path) -> tuple[str, dict[str, Any]]:
    """Open the run's data; return the fingerprint and the fold of each tested pair."""
    config = study_config(encoder, records, run, folds=3)
    pairs = open_data(config.data[0], config).pairs
    return pairs.fingerprint, {pair["id"]: pair["fold"] for pair in pairs.tested}


def test_twins_lie_in_one_fold_and_others_stay(tmp_path: Path) -> None:
    run, twins = shop_with_twins(tmp_path / "shop")
    rows = read_table(run / "1-pairs/pairs.parquet").to_pylist()
    before, after = assign_folds(rows, 3, 13), assign_folds(rows, 3, 13, ("text",))
    assert len({before[query] for query in twins}) == 2
    assert after == before | dict.fromkeys(twins, before[min(twins)])
    for fold in range(3):
        made = fold_folder(run, fold, 3, 13, tmp_path / str(fold), kept=("text",)) / "1-pairs/pairs.parquet"
        splits = {row["query_id"]: row["split"] for row in read_table(made).to_pylist()}
        assert len({splits[query] for query in twins}) == 1


def test_records_that_were_begun_with_other_folds_keep_them(encoder: Path, tmp_path: Path) -> None:
    run, _ = shop_with_twins(tmp_path / "shop")
    saved = read_json(run / "config.json")
    write_json(run / "config.json", saved | {"split": {"kept_together": []}})
    before = opened(encoder, run, tmp_path / "records")
    write_json(run / "config.json", saved)
    Records(tmp_path / "records").add("shop", "kl", {"key": "a"})
    header = tmp_path / "records/shop" / HEADER
    write_json(header, {name: value for name, value in read_json(header).items() if name != "kept_together"})
    assert opened(encoder, run, tmp_path / "records") == before
    fingerprint, folds = opened(encoder, run, tmp_path / "new")
    assert fingerprint != before[0] and folds != before[1]
