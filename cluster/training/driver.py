"""The driver's side of a training: Ray Train workers that run `train_loop`, with progress and restart.

SFT, DPO and LRKD share it. A training that was interrupted goes on from its last checkpoint, with the
number of workers that made it: a ZeRO checkpoint is cut into one piece per worker.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.base.errors import UserError
from cluster.base.progress import Board, console, progress
from cluster.base.ray_internals import training_failed_error
from cluster.base.stage_folder import digest, result_settings
from cluster.config import TrainSettings
from cluster.training.best_weights import before_training, kept
from cluster.training.checkpoints import delete_checkpoints, storage_place, trainings_with_checkpoints
from cluster.training.curves import MlflowBoard
from cluster.training.deepspeed_config import deepspeed_config
from cluster.training.lengths import write_lengths
from cluster.training.task import Row, Rows, TrainTask, epoch_batches
from cluster.training.worker import TrainJob, train_worker

__all__ = ["Row", "Rows", "TrainResult", "TrainTask", "epoch_batches", "read_history", "run_training"]

CHECKPOINTS = ".checkpoints"


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves: its model folder and its figures by step."""

    model: Path
    history: list[dict[str, Any]]

    @property
    def before(self) -> dict[str, Any]:
        """The held-out figures before training; empty without held-out rows."""
        return before_training(self.history)

    @property
    def kept(self) -> dict[str, Any]:
        """The held-out figures of the weights that were saved; empty without held-out rows."""
        return kept(self.history)

    def steps(self) -> dict[str, int | None]:
        """Return at which step training ended, and of which step the weights were saved."""
        return {"last_step": self.history[-1]["step"], "kept_step": self.kept.get("step", self.history[-1]["step"])}


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
        UserError: no training rows, no held-out rows to be best by, batches that do not divide, checkpoints
            of another number of workers, or the training failed.
    """
    settings = task.settings
    if not len(task.train_rows()):
        raise UserError(f"{label}: there are no training rows. Look at the counts of the stages before it.")
    if settings.keep == "best" and not len(task.dev_rows()):
        raise UserError(f"{label}: train.keep = 'best' needs held-out rows, and there are none. Set it to 'last'.")
    deepspeed_config(settings)  # refuses what cannot work before workers start
    mlflow = MlflowBoard(settings.mlflow) if settings.mlflow else None
    storage = storage_place(settings.checkpoints, out / CHECKPOINTS)
    name = run_name(task, storage, label)
    out.mkdir(parents=True, exist_ok=True)
    write_lengths(task, out / CHECKPOINTS)
    with progress(label, unit="step") as bar:
        board = Board.start(bar, f"Ray Train to start, and workers to load the model ({settings.workers.count})")
        job = TrainJob(task, str(out.resolve()), str(out.resolve() / CHECKPOINTS), board.actor)
        try:
            _fit(job, storage, name, label)
        finally:
            board.stop()
    drop_checkpoints(settings, out)
    result = TrainResult(out / "model", read_history(out / "history.jsonl"))
    if mlflow is not None:
        mlflow.write(result.history, settings, label, out)
    if settings.best_by is not None:
        found, steps = result.kept, result.steps()
        figure = f"{settings.best_by} {found[settings.best_by]:.4g}"
        console().print(f"  {label}: kept step {steps['kept_step']} of {steps['last_step']}, dev {figure}")
    return result


def drop_checkpoints(settings: TrainSettings, out: Path) -> None:
    """Delete what a finished training in `out` has left of checkpoints, here and on storage."""
    if (out / CHECKPOINTS).exists():
        delete_checkpoints(storage_place(settings.checkpoints, out / CHECKPOINTS))
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


def run_name(task: TrainTask, storage: str, label: str) -> str:
    """Return the name under which a training's checkpoints lie: its settings' digest and its workers.

    Raises:
        UserError: the same training was interrupted with another number of workers, or the storage of
            checkpoints cannot be reached.
    """
    identity = digest([type(task).__name__, task.seed, result_settings(task.settings)])
    count = task.settings.workers.count
    for saved in trainings_with_checkpoints(storage):
        before = saved.removeprefix(f"{identity}-").removesuffix("w")
        if saved.startswith(f"{identity}-") and before != str(count):
            raise UserError(
                f"{label}: train.workers.count is {count}, but this training was interrupted with {before} workers, "
                f"and its checkpoint is cut into as many pieces. Set it to {before} to go on, or delete "
                f"{storage} to start over."
            )
    return f"{identity}-{count}w"


def _fit(job: TrainJob, storage: str, name: str, label: str) -> None:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    # It warns workers of a node that is about to go, and a task here has nothing to do about that.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # A worker waits at every second checkpoint until the controller has looked; its default is every 2 s.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    settings = job.task.settings
    workers = settings.workers
    gpu = workers.gpus_per_worker > 0
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
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        trainer.fit()
    except training_failed_error() as error:
        raise UserError(f"{label}: the training failed: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """Return the last line of the innermost failure: what the worker itself said."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    text = str(next(iter(failures.values()))).strip()
    return text.splitlines()[-1] if text else type(error).__name__
