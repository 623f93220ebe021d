"""One run of a study, as plain data for a worker: a fold, what is made of it for the row, a training, its answers."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cluster.base.devices import use_gpus
from cluster.config import Settings
from distill.config import StudentSettings, StudentStage
from distill.study.arms import Reading
from distill.study.folds import fold_folder
from distill.study.reader import read_in_advance
from distill.study.train import answers, dev_figures, study_task, train_student
from mpcot.config import PerspectiveSettings
from mpcot.sources.config import Kept, LabelSettings


class Job(Settings):
    """Everything that a run needs, as plain data that can be sent to a worker."""

    run: Path
    labels: LabelSettings
    perspectives: PerspectiveSettings
    student: StudentSettings
    reading: Reading | None = None
    seed: int
    fold: int
    folds: int
    folds_seed: int
    hidden_labels: float = 0
    hidden_unlabelled: float = 0
    kept_together: tuple[Kept, ...] = ()
    test: bool
    threads: int
    gpus: float = 0


def run_one(job: Job) -> dict[str, Any]:
    """Train a student, judge it and return what is kept of the run.

    Returns: `dev` figures as stage 9 logs them, but with `log_loss`, accuracy, macro-F1 and AUC of calibrated
        probabilities, `calibration`, `train_pairs`, `seconds` and, with `job.test`, `probabilities` by hashed pair id.
    """
    started = time.monotonic()
    use_gpus(job.gpus)
    if not torch.cuda.is_available():
        torch.set_num_threads(job.threads)
    with tempfile.TemporaryDirectory() as scratch:
        fold, read = Path(scratch) / "fold", Path(scratch) / "read"
        hidden = job.hidden_labels, job.hidden_unlabelled
        fold_folder(job.run, job.fold, job.folds, job.folds_seed, fold, hidden, job.kept_together)
        student = job.student.model_copy(update={"baseline": False})
        stage = StudentStage(seed=job.seed, labels=job.labels, perspectives=job.perspectives, student=student)
        if job.reading is not None:
            stage, fold = read_in_advance(stage, job.reading, fold, read, job.kept_together)
        task = study_task(stage, fold)
        trained, taught = train_student(task)
        found: dict[str, Any] = {"train_pairs": taught}
        found |= answers(task, trained, test=job.test)
        found["dev"] = dev_figures(task, trained) | found["dev"]
    return found | {"seconds": round(time.monotonic() - started, 1)}
