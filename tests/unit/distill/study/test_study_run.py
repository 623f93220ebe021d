"""A whole study on tiny shops: resumed, tuned alike, chosen on dev, and able to find what was planted."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.base.errors import UserError
from distill.study import study
from distill.study.compare import compare
from distill.study.config import Tuning
from distill.study.train import Job, run_one
from tests.helpers.study_run import Here, planted_run, shop_run, study_config

# 3 rows x 2 trials, and 3 rows x 2 seeds x 2 folds.
TRIALS, FINALS = 6, 12


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    found = Here()
    monkeypatch.setattr(study, "execute", found)
    return found


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return shop_run(tmp_path / "shop")


def test_a_study_is_resumed_and_asks_nothing_twice(encoder: Path, shop: Path, here: Here) -> None:
    settings = study_config(encoder, shop.parent / "records", shop)
    first = compare(settings, *study.run_study(settings))
    assert [job.test for job in here.made].count(False) == TRIALS and len(here.made) == TRIALS + FINALS
    # Every row as many trials, all on the same pairs.
    tuned = Counter(job.student.extractor.kind + job.student.control for job in here.made if not job.test)
    assert list(tuned.values()) == [2, 2, 2]
    assert {(job.seed, job.fold) for job in here.made if not job.test} == {(1, 0)}
    here.made.clear()
    assert compare(settings, *study.run_study(settings)) == first and here.made == []

    # One record less is one run more; the others' stay as they are.
    path = shop.parent / "records/shop/ce_only.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == 2 + 4
    lost = next(line for line in lines if '"purpose": "final"' in line)
    path.write_text("".join(f"{line}\n" for line in lines if line != lost))
    study.run_study(settings)
    assert len(here.made) == 1 and here.made[0].test

    # The records alone give the same tables where the run folder is not at hand.
    shutil.rmtree(shop)
    tables = compare(settings, *study.run_study(settings, make=False))
    for report in (tables, first):
        report["data"][0].pop("hours")
        for row in report["data"][0]["rows"]:
            row.pop("seconds_per_run")
    assert tables == first
    path.unlink()
    with pytest.raises(UserError, match=r"records: 2 of 4 trials are missing. Run without --tables"):
        study.run_study(settings, make=False)


def test_what_finished_is_kept_when_a_run_fails(
    encoder: Path, shop: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = study_config(encoder, shop.parent / "records", shop)

    def failing(jobs: Sequence[Job], workers: object) -> Iterator[tuple[int, dict[str, Any] | str]]:
        yield 0, "out of memory"
        yield from ((place, run_one(job)) for place, job in enumerate(jobs) if place)

    monkeypatch.setattr(study, "execute", failing)
    says = r"1 of 4 trials failed; the others are kept\. First: shop, ce_only, seed 1, fold 0: out of memory"
    with pytest.raises(UserError, match=says):
        study.run_study(settings)
    monkeypatch.setattr(study, "execute", here)
    study.run_study(settings)
    assert len(here.made) == TRIALS + FINALS - 3


def test_the_row_is_chosen_on_dev_whatever_test_says(encoder: Path, shop: Path, here: Here) -> None:
    settings = study_config(encoder, shop.parent / "records", shop)
    _, rows = study.run_study(settings)
    base, poly, shuffled = rows["shop"]
    assert shuffled.row.changes["extractor"] == {"kind": "poly"} and shuffled.row.tunes == ("alignment_weight",)
    low, high = ([record | {"dev": {"macro_f1": value}} for record in poly.finals] for value in (0.2, 0.8))
    good_on_test = study.FinishedRow(poly.row, poly.student, [], low)
    good_on_dev = study.FinishedRow(poly.row.model_copy(update={"name": "other"}), poly.student, [], high)
    assert study.best_candidate([base, good_on_test, good_on_dev], settings) is good_on_dev


def test_a_planted_effect_is_found(encoder: Path, tmp_path: Path, here: Here) -> None:
    """Two of five training labels are wrong and the rationales are right: LRKD must see it, its control must not."""
    settings = study_config(
        encoder,
        tmp_path / "records",
        planted_run(tmp_path / "planted"),
        rows=("ce_only", "lrkd_mlp", "shuffled"),
        folds=1,
        bootstrap_resamples=500,
        tuning=Tuning(trials=1, learning_rate=(3e-3,), epochs=(4,), teacher_weight=(5.0,), normalise=(False,)),
    )
    figures = compare(settings, *study.run_study(settings))["figures"]
    assert figures["macro_f1_gain_low"] > 0 and figures["accuracy_gain_low"] > 0
    assert figures["gain_over_shuffled_low"] > 0
