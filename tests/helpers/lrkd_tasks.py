"""Trainings of stage 9 on the small shop, and the losses of a student before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cluster.base.stage_folder import StageFolder
from cluster.config import TrainSettings
from distill.config import MlpExtractor, StudentSettings, StudentStage
from distill.lrkd.stage import tasks
from distill.lrkd.task import LrkdTask
from mpcot.config import PerspectiveSettings
from mpcot.sources.config import LabelSettings

TRAIN = TrainSettings(epochs=1, learning_rate=3e-3, global_batch=8, micro_batch=8, precision="fp32")
# What a test does not ask for is not in its loss.
BARE: dict[str, Any] = {
    "alignment_weight": 0.1,
    "soft_label_weight": 0.0,
    "soft_labels": "raw",
    "use_unlabelled": False,
    "unlabelled_weight": 1.0,
    "unlabelled_balance": "none",
    "target_pairs": "own",
}


def config(encoder: Path, **student: Any) -> StudentStage:
    """Return the settings of stage 9 for a tiny encoder; `student` changes those of the student."""
    given = {"model": str(encoder), "max_tokens": 32, "train": TRAIN, "extractor": MlpExtractor(hidden=8), **BARE}
    return StudentStage(
        seed=3,
        labels=LabelSettings(scheme="binary"),
        perspectives=PerspectiveSettings(names=("intent", "rules")),
        student=StudentSettings(**(given | student)),
    )


def lrkd(encoder: Path, folder: StageFolder, **student: Any) -> LrkdTask:
    """Return the training of the student that learns from rationales too."""
    return tasks(config(encoder, **student), folder)["lrkd"]


def losses(task: LrkdTask, count: int = 8) -> tuple[float, dict[str, float]]:
    """Return the loss of the first training rows and its parts, before any training."""
    model = task.build().eval()
    total, figures = task.loss(model, task.collate(list(task.train_rows()[:count])))
    return total.item(), figures


def dev_figures(task: LrkdTask) -> dict[str, float]:
    """Return the figures on dev before any training."""
    model = task.build().eval()
    with torch.no_grad():
        return task.summarise(task.predict(model, task.collate(list(task.dev_rows()))))
