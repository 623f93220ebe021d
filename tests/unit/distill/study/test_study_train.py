"""One run of a study: what stage 9 trains, in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.base.stage_folder import StageFolder
from cluster.training.task import step_seed
from distill.config import MlpExtractor, StudentSettings, StudentStage
from distill.lrkd.stage import tasks
from distill.lrkd.task import LrkdTask
from distill.study.data import hashed_id
from distill.study.folds import assign_folds
from distill.study.train import Job, accumulate, dev_figures, run_one, select_rows, train_student
from mpcot.config import PerspectiveSettings
from mpcot.sources.config import LabelSettings
from tests.helpers.study_run import TRAIN, shop_run
from tests.helpers.tiny_shop import shop

NAMES = PerspectiveSettings(names=("intent", "rules"))
LABELS = LabelSettings(scheme="binary")


def student(encoder: Path, **changes: Any) -> StudentSettings:
    train = TRAIN.model_copy(update={"epochs": 2, "learning_rate": 3e-3})
    given: dict[str, Any] = {"model": str(encoder), "max_tokens": 32, "train": train, "alignment_weight": 1.0}
    return StudentSettings(**(given | {"extractor": MlpExtractor(hidden=8), "baseline": False} | changes))


@pytest.fixture
def task(encoder: Path, stage: Callable[..., StageFolder]) -> LrkdTask:
    own = student(encoder, train=TRAIN.model_copy(update={"epochs": 15, "learning_rate": 3e-3}))
    stage9 = StudentStage(seed=3, labels=LABELS, perspectives=NAMES, student=own)
    return tasks(stage9, stage("9-student"))["lrkd"]


def job(encoder: Path, run: Path, **changes: Any) -> Job:
    given: dict[str, Any] = {"run": run, "labels": LABELS, "perspectives": NAMES, "student": student(encoder)}
    return Job(**(given | {"seed": 3, "fold": 1, "folds": 3, "folds_seed": 13, "test": True, "threads": 1} | changes))


def test_chosen_rows_lose_the_padding_of_the_others(task: LrkdTask) -> None:
    rows = task.train_rows()
    whole, chosen = task.collate(list(rows)), np.array([4, 9])
    alone, taken = task.collate([rows[4], rows[9]]), select_rows(whole, chosen)
    assert taken["units"] == 2 and taken["input_ids"].shape == alone["input_ids"].shape
    assert set(alone) == set(taken)
    for name in set(alone) - {"units", "query"}:
        assert torch.equal(alone[name], taken[name]), name


def test_training_learns_what_the_loss_asks(task: LrkdTask) -> None:
    before = dev_figures(task, task.build())
    trained, pairs = train_student(task)
    after = dev_figures(task, trained)
    assert pairs == 32 and after["loss"] < before["loss"] and after["alignment"] < 0.7 * before["alignment"]
    assert after["alignment_over_ce_gradient"] > 0


def test_a_loss_is_told_how_far_the_training_is(task: LrkdTask, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr("distill.study.train.accumulate", lambda task, *_: seen.append(task.progress))
    train_student(task)
    steps = task.settings.epochs * 4
    assert seen == [step / steps for step in range(steps)]


def test_a_training_takes_the_steps_that_it_is_told(task: LrkdTask, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr("distill.study.train.accumulate", lambda task, *_: seen.append(task.progress))
    task.settings = task.settings.model_copy(update={"steps": 7})  # the fourth of each epoch is its last
    train_student(task)
    assert seen == [step / 7 for step in range(7)]


def test_every_step_draws_its_own_dropout_whatever_was_drawn_before(
    task: LrkdTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[float]] = [[], []]
    for run, drawn in enumerate((1, 5)):
        monkeypatch.setattr(
            "distill.study.train.accumulate", lambda *_, own=seen[run], n=drawn: own.append(float(torch.rand(n)[0]))
        )
        train_student(task)
    assert seen[0] == seen[1] and len(set(seen[0])) == len(seen[0])
    torch.manual_seed(step_seed(task.seed, 3))
    assert seen[0][3] == float(torch.rand(1))


def test_the_loss_is_a_mean_by_weight(task: LrkdTask) -> None:
    rows, found = task.collate(list(task.train_rows())), []
    for weight in (0.5, 0.5, 1.0), (1.0, 1.0, 2.0):
        rows["weight"][:3] = torch.tensor(weight)
        model = task.build().eval()
        accumulate(task, model, rows, [0, 1, 2])
        found.append(model.classifier.weight.grad)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_mixed"])
def test_matrices_are_multiplied_as_the_precision_says(
    task: LrkdTask, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[bool] = set()
    own = task.loss

    def loss(*given: Any) -> Any:
        seen.add(torch.is_autocast_enabled("cpu"))
        return own(*given)

    monkeypatch.setattr(task, "loss", loss)
    task.settings = task.settings.model_copy(update={"precision": precision, "epochs": 1})
    trained, _ = train_student(task)
    assert seen == {precision != "fp32"}
    assert {weight.dtype for weight in trained.parameters()} == {torch.float32}


def test_micro_batches_add_up_to_the_gradient_of_the_whole(task: LrkdTask) -> None:
    rows, found = task.collate(list(task.train_rows())), []
    for micro in (8, 2):
        task.settings = task.settings.model_copy(update={"micro_batch": micro})
        model = task.build().eval()  # dropout would draw by forward pass
        accumulate(task, model, rows, [3, 1, 4, 15, 9, 2, 6, 5])
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and found[0]["classifier.weight"].abs().sum() > 0
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_a_final_run_answers_its_folds_test_and_is_the_same_again(encoder: Path, tmp_path: Path) -> None:
    run = shop_run(tmp_path / "shop")
    first, again = (run_one(job(encoder, run)) for _ in range(2))
    for found in (first, again):
        assert found.pop("seconds") > 0
    assert first == again
    assert len(first["probabilities"]) == 16 and first["train_pairs"] == 32
    assert {round(sum(own), 6) for own in first["probabilities"].values()} == {1}
    folds = {fold: {q for q, own in assign_folds(shop(), 3, 13).items() if own == fold} for fold in (0, 1, 2)}
    assert set(first["probabilities"]) == {hashed_id(p["pair_id"]) for p in shop() if p["query_id"] in folds[1]}
    assert {"log_loss", "auc", "accuracy", "macro_f1", "ce"} <= set(first["dev"])
    assert set(first["calibration"]["bias"]) == {"1", "0"} and first["calibration"]["temperature"] > 0
    other = run_one(job(encoder, run, seed=4))
    assert other["dev"] != first["dev"]


def test_a_trial_never_sees_a_test_pair(encoder: Path, tmp_path: Path) -> None:
    found = run_one(job(encoder, shop_run(tmp_path / "shop"), test=False))
    assert set(found) == {"dev", "calibration", "train_pairs", "seconds"}
