"""The training of a study: what stage 9 trains, in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.base.stage_folder import StageFolder
from cluster.training.task import step_seed
from distill.config import StudentStage
from distill.lrkd.stage import tasks
from distill.lrkd.task import LrkdTask
from distill.study.train import accumulate, dev_figures, select_rows, train_student
from tests.helpers.study_run import LABELS, NAMES, TRAIN, small_student


@pytest.fixture
def task(encoder: Path, stage: Callable[..., StageFolder]) -> LrkdTask:
    own = small_student(encoder, train=TRAIN.model_copy(update={"epochs": 15, "learning_rate": 3e-3}))
    stage9 = StudentStage(seed=3, labels=LABELS, perspectives=NAMES, student=own)
    return tasks(stage9, stage("9-student"))["lrkd"]


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
