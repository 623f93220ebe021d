"""A finished run up to the targets, and trainings without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.base.stage_folder import StageFolder
from cluster.training.best_weights import mark_kept
from cluster.training.driver import TrainResult
from cluster.training.task import TrainTask, epoch_batches
from tests.helpers.tiny_bert import tiny_bert
from tests.helpers.tiny_shop import make_run, stage_folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path)


@pytest.fixture
def stage(run_dir: Path) -> Callable[..., StageFolder]:
    return partial(stage_folder, run_dir)


def plain_training(task: TrainTask, out: Path, label: str) -> TrainResult:
    """What `run_training` promises, in one process without Ray or DeepSpeed."""
    model, rows, dev = task.build(), task.train_rows(), task.dev_rows()
    optimiser = torch.optim.AdamW(model.parameters(), lr=task.settings.learning_rate)
    history = [{"step": 0, "split": "dev", **evaluation(task, model, dev)}]
    lengths = [task.length(row) for row in rows]
    for epoch in range(task.settings.epochs):
        for batch in epoch_batches(lengths, task.settings, task.seed, epoch):
            model.train()
            collated = task.collate([rows[i] for i in batch])
            loss, _ = task.loss(model, collated)
            (loss / collated["units"]).backward()
            optimiser.step()
            optimiser.zero_grad()
        history.append({"step": epoch + 1, "split": "dev", **evaluation(task, model, dev)})
    mark_kept(history, task.settings)
    out.mkdir(parents=True, exist_ok=True)
    task.save({name: p.detach().clone() for name, p in model.named_parameters()}, out / "model")
    (out / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    return TrainResult(out / "model", history)


def evaluation(task: TrainTask, model: torch.nn.Module, rows: Any) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        return task.summarise(task.predict(model, task.collate(list(rows))))


@pytest.fixture
def trained_without_ray(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the cluster's harness by `plain_training`; the list names what was trained."""
    labels: list[str] = []

    def training(task: TrainTask, out: Path, label: str) -> TrainResult:
        labels.append(label)
        return plain_training(task, out, label)

    monkeypatch.setattr("distill.lrkd.stage.run_training", training)
    return labels
