"""A whole study on tiny shops: resumed, tuned alike, chosen on dev, and able to find what was planted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.base.errors import UserError
from distill.config import StudentSettings
from distill.study import study
from distill.study.arms import StudyRow
from distill.study.compare import compare
from distill.study.config import Tuning
from distill.study.job import Job, run_one
from tests.helpers.study_run import Here, planted_run, shop_run, study_config

# Two learning rates of the baseline and two lambdas of LRKD; four rows x 2 seeds x 2 folds.
TRIALS, FINALS = 4, 16


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
    tried = [job.student for job in here.made if not job.test]
    assert [(one.train.learning_rate, one.alignment_weight) for one in tried[:2]] == [(1e-3, 0), (3e-3, 0)]
    assert [(one.soft_label_weight, one.alignment_weight) for one in tried[2:]] == [(1, 0.1), (1, 1)]
    # Rows share the training's settings, and the control takes lambda from the row that it controls.
    finals = [job.student for job in here.made if job.test]
    assert len({(one.train.learning_rate, one.train.epochs) for one in finals}) == 1
    assert len({one.alignment_weight for one in finals}) == 2
    assert {(job.seed, job.fold) for job in here.made if not job.test} == {(1, 0)}
    here.made.clear()
    assert compare(settings, *study.run_study(settings)) == first and here.made == []

    # One record less is one run more; the others' stay as they are.
    path = shop.parent / "records/shop/labels.jsonl"
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
    with pytest.raises(UserError, match=r"records: 2 of 2 trials are missing. Run without --tables"):
        study.run_study(settings, make=False)


def test_the_points_of_a_learning_curve_take_the_settings_of_the_whole(encoder: Path, shop: Path, here: Here) -> None:
    settings = study_config(encoder, shop.parent / "records", shop)
    changes = {"name": "half", "hidden_labels": 0.5, "rows": ("labels", "kl", "lrkd_kl"), "seeds": (1,)}
    half = settings.data[0].model_copy(update=changes)
    _, rows = study.run_study(settings.model_copy(update={"data": (half, *settings.data)}))
    assert [job.test for job in here.made].count(False) == TRIALS, "the whole alone is tuned"
    whole = {row.row.name: row.student for row in rows["shop"]}
    assert len(rows["half"]) == 3 and all(row.student == whole[row.row.name] for row in rows["half"])
    made = [job for job in here.made if job.hidden_labels]
    assert len(made) == 3 * 2 and {job.hidden_labels for job in made} == {0.5} and {job.seed for job in made} == {1}


def test_a_point_of_a_learning_curve_whose_row_the_whole_lacks(encoder: Path, shop: Path, here: Here) -> None:
    settings = study_config(encoder, shop.parent / "records", shop, rows=("labels", "kl", "lrkd_kl"))
    half = settings.data[0].model_copy(
        update={"name": "half", "hidden_labels": 0.5, "rows": (*settings.rows, "shuffled")}
    )
    with pytest.raises(UserError, match=r"data.half.rows: 'shuffled' is not a row of 'shop', whose settings it takes"):
        study.run_study(settings.model_copy(update={"data": (*settings.data, half)}))
    assert here.made == []


def test_a_control_without_its_vectors_is_refused_before_any_run(encoder: Path, shop: Path, here: Here) -> None:
    settings = study_config(encoder, shop.parent / "records", shop, rows=("labels", "kl", "lrkd_kl", "permuted"))
    with pytest.raises(UserError, match=r"data.shop, row permuted: .* no vectors for 'permuted'. Add it to targets"):
        study.run_study(settings)
    assert here.made == []


def test_a_reader_of_too_many_tokens_is_refused_before_any_run(encoder: Path, shop: Path, here: Here) -> None:
    settings = study_config(encoder, shop.parent / "records", shop, rows=("labels", "kl", "lrkd_kl", "reader"))
    named = r"data.shop, row reader: student.max_tokens \+ reading.tokens: 224 is more than the 64"
    with pytest.raises(UserError, match=named):
        study.run_study(settings)
    assert here.made == []


def test_what_finished_is_kept_when_a_run_fails(
    encoder: Path, shop: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = study_config(encoder, shop.parent / "records", shop)

    def failing(jobs: Sequence[Job], workers: object) -> Iterator[tuple[int, dict[str, Any] | str]]:
        yield 0, "out of memory"
        yield from ((place, run_one(job)) for place, job in enumerate(jobs) if place)

    monkeypatch.setattr(study, "execute", failing)
    says = r"1 of 2 trials failed; the others are kept\. First: shop, labels, seed 1, fold 0: out of memory"
    with pytest.raises(UserError, match=says):
        study.run_study(settings)
    monkeypatch.setattr(study, "execute", here)
    study.run_study(settings)
    assert len(here.made) == TRIALS + FINALS - 1


@pytest.mark.parametrize(("tried", "chosen_lambda"), [((0.1, 1.0, 0.6), 0.6), ((0.1, 0.2), 0.2)])
def test_lambda_is_chosen_among_those_that_learnt(
    encoder: Path, shop: Path, monkeypatch: pytest.MonkeyPatch, tried: tuple[float, ...], chosen_lambda: float
) -> None:
    """The smaller lambda is better on dev, but below 0.5 the skill is below 0.1: then the best skill is taken."""
    settings = study_config(encoder, shop.parent / "records", shop)
    settings = settings.model_copy(update={"tuning": settings.tuning.model_copy(update={"alignment_weight": tried})})
    seen: list[Job] = []

    def told(jobs: Sequence[Job], workers: object) -> Iterator[tuple[int, dict[str, Any]]]:
        for place, job in enumerate(jobs):
            seen.append(job)
            own = job.student
            dev = {"log_loss": own.train.learning_rate + own.alignment_weight, "ce": 1.0}
            dev |= {"alignment_skill": own.alignment_weight / 5} if own.alignment_weight else {}
            yield place, {"dev": dev, "train_pairs": 1, "seconds": 1.0}

    monkeypatch.setattr(study, "execute", told)
    _, rows = study.run_study(settings)
    chosen = {row.row.name: row.student for row in rows["shop"]}
    assert {one.train.learning_rate for one in chosen.values()} == {1e-3}
    weights = {name: (one.soft_label_weight, one.alignment_weight) for name, one in chosen.items()}
    aligned = (1, chosen_lambda)
    assert weights == {"labels": (0, 0), "kl": (1, 0), "lrkd_kl": aligned, "shuffled": aligned}
    assert rows["shop"][3].student.control == "shuffled"
    assert rows["shop"][2].on_dev("alignment_skill") == chosen_lambda / 5
    assert rows["shop"][0].on_dev("alignment_skill") is None


def test_rows_of_the_primary_test_get_more_seeds(encoder: Path, shop: Path, here: Here) -> None:
    settings = study_config(
        encoder,
        shop.parent / "records",
        shop,
        rows=("labels", "cls", "kl", "lrkd_kl", "shuffled"),
        seeds=(1,),
        primary_seeds=(1, 2),
        primary={"row": "lrkd_kl", "against": "labels"},
    )
    _, rows = study.run_study(settings)
    seeds = {row.row.name: len({record["seed"] for record in row.finals}) for row in rows["shop"]}
    assert seeds == {"labels": 2, "cls": 1, "kl": 2, "lrkd_kl": 2, "shuffled": 2}


def test_the_row_is_chosen_on_dev_whatever_test_says(encoder: Path, tmp_path: Path) -> None:
    def finished(name: str, role: Any, loss: float) -> study.FinishedRow:
        row = StudyRow(name=name, title=name, role=role)
        return study.FinishedRow(row, StudentSettings(), [], [{"dev": {"log_loss": value}} for value in (loss, loss)])

    settings = study_config(encoder, tmp_path / "records", tmp_path / "shop")
    base, poor, good = finished("a", "baseline", 0.1), finished("b", "candidate", 0.8), finished("c", "candidate", 0.2)
    assert study.best_candidate([base, poor, good], settings) is good


MLP = """
[labels]
title = "labels only"
role = "baseline"
changes = { extractor = { kind = "mlp" }, normalise_targets = false }

[lrkd]
title = "LRKD"
role = "candidate"
twin = "labels"
weights = ["alignment_weight"]
changes = { extractor = { kind = "mlp" }, normalise_targets = false }

[shuffled]
title = "another pair's rationale"
role = "control"
of = "lrkd"
changes = { control = "shuffled" }
"""


def test_a_planted_effect_is_found(encoder: Path, tmp_path: Path, here: Here) -> None:
    """Two of five training labels are wrong and the rationales are right: LRKD must see it, its control must not."""
    (tmp_path / "mlp.toml").write_text(MLP)
    settings = study_config(
        encoder,
        tmp_path / "records",
        planted_run(tmp_path / "planted"),
        rows=(),
        rows_file=str(tmp_path / "mlp.toml"),
        folds=1,
        bootstrap_resamples=500,
        tuning=Tuning(learning_rate=(3e-3,), epochs=(4,), alignment_weight=(5.0,)),
        primary={"row": "lrkd", "against": "labels"},
    )
    report = compare(settings, *study.run_study(settings))
    assert report["figures"]["macro_f1_gain_low"] > 0 and report["figures"]["accuracy_gain_low"] > 0
    (tested,) = (row for row in report["data"][0]["rows"] if row["subject"])
    assert tested["over"]["shuffled"]["log_loss"]["low"] > 0
    assert "primary test: LRKD beats labels only in macro-F1" in report["conclusions"][0]
