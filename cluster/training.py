"""The driver's side of a training: Ray Train workers that run `train_loop`, with progress and restart.

SFT, DPO and LRKD share it. A training that was interrupted goes on from its last checkpoint; the
number of workers is part of its name, since a ZeRO checkpoint belongs to one.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.artifacts import digest, result_settings
from cluster.deepspeed_config import deepspeed_config
from cluster.errors import UserError
from cluster.progress import Board, progress
from cluster.task import Row, Rows, TrainTask, epoch_batches
from cluster.train_loop import TrainJob, train_worker

__all__ = ["Row", "Rows", "TrainResult", "TrainTask", "epoch_batches", "read_history", "run_training"]

CHECKPOINTS = ".checkpoints"


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves: its model folder and its figures by step."""

    model: Path
    history: list[dict[str, Any]]

    def dev(self, place: int) -> dict[str, Any]:
        """Return the held-out figures before training (0) or after it (-1); empty without held-out rows."""
        rows = [row for row in self.history if row["split"] == "dev"]
        return rows[place] if rows else {}


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read `history.jsonl`: one object per logged step."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def run_training(task: TrainTask, out: Path, label: str) -> TrainResult:
    """Train on Ray and write `out/model`, `out/history.jsonl` and `out/tensorboard`.

    Args:
        task: what to train; its settings say with how many workers.
        out: folder that every worker reaches under this path.
        label: what the progress line calls this training.

    Raises:
        UserError: no training rows, batches that do not divide, or the training failed.
    """
    settings = task.settings
    if not len(task.train_rows()):
        raise UserError(f"{label}: there are no training rows. Look at the counts of the stages before it.")
    deepspeed_config(settings)  # refuses what cannot work before workers start
    out.mkdir(parents=True, exist_ok=True)
    with progress(label, unit="step") as bar:
        board = Board.start(bar)
        job = TrainJob(task, str(out.resolve()), board.actor)
        try:
            _fit(job, out.resolve() / CHECKPOINTS, label)
        finally:
            board.stop()
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return TrainResult(out / "model", read_history(out / "history.jsonl"))


def _fit(job: TrainJob, checkpoints: Path, label: str) -> None:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    # A worker waits at every second checkpoint until the controller has looked; its default is every 2 s.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    settings = job.task.settings
    workers = settings.workers
    gpu = workers.gpus_per_worker > 0
    identity = digest([type(job.task).__name__, job.task.seed, result_settings(settings)])
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker, **({"GPU": workers.gpus_per_worker} if gpu else {})},
        ),
        run_config=RunConfig(
            name=f"{identity}-{workers.count}w",
            storage_path=str(checkpoints),
            failure_config=FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise UserError(f"{label}: the training failed: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """Return the last line of the innermost failure: what the worker itself said."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    text = str(next(iter(failures.values()))).strip()
    return text.splitlines()[-1] if text else type(error).__name__
