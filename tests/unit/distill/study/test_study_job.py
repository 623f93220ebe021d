"""One run of a study: it answers its fold's test, is the same again, and a trial sees no test pair."""

from __future__ import annotations

from pathlib import Path

from distill.study.data import hashed_id
from distill.study.folds import assign_folds
from distill.study.job import run_one
from tests.helpers.study_run import shop_run, small_job
from tests.helpers.tiny_shop import shop


def test_a_final_run_answers_its_folds_test_and_is_the_same_again(encoder: Path, tmp_path: Path) -> None:
    run = shop_run(tmp_path / "shop")
    first, again = (run_one(small_job(encoder, run)) for _ in range(2))
    for found in (first, again):
        assert found.pop("seconds") > 0
    assert first == again
    assert len(first["probabilities"]) == 16 and first["train_pairs"] == 32
    assert {round(sum(own), 6) for own in first["probabilities"].values()} == {1}
    folds = {fold: {q for q, own in assign_folds(shop(), 3, 13).items() if own == fold} for fold in (0, 1, 2)}
    assert set(first["probabilities"]) == {hashed_id(p["pair_id"]) for p in shop() if p["query_id"] in folds[1]}
    assert {"log_loss", "auc", "accuracy", "macro_f1", "ce"} <= set(first["dev"])
    assert set(first["calibration"]["bias"]) == {"1", "0"} and first["calibration"]["temperature"] > 0
    other = run_one(small_job(encoder, run, seed=4))
    assert other["dev"] != first["dev"]


def test_a_trial_never_sees_a_test_pair(encoder: Path, tmp_path: Path) -> None:
    found = run_one(small_job(encoder, shop_run(tmp_path / "shop"), test=False))
    assert set(found) == {"dev", "calibration", "train_pairs", "seconds"}
