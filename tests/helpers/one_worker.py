"""A worker's part of a training in this very process: Ray Train's session is played, DeepSpeed is real."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch.distributed as dist

from cluster.training.driver import TrainResult, read_history
from cluster.training.task import TrainTask
from cluster.training.worker import TrainJob, train_worker


def unheard(*_: object) -> None:
    """Take no notice."""


# Where workers tell how far they are, with nobody who listens.
SILENT_BOARD = SimpleNamespace(put=SimpleNamespace(remote=unheard))


@contextmanager
def process_group(folder: Path) -> Iterator[None]:
    """A gloo group of one."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def train_here(task: TrainTask, out: Path, patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Train as `run_training` does, from the last checkpoint in `out` if there is one; return the history."""
    saved = out / "reported"

    def report(_: dict[str, Any], checkpoint: Any) -> None:
        shutil.rmtree(saved, ignore_errors=True)
        shutil.copytree(checkpoint.path, saved)

    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    patch.setenv("LOCAL_RANK", "0")
    patch.setattr(ray.train, "get_context", lambda: context)
    patch.setattr(ray.train, "get_checkpoint", lambda: ray.train.Checkpoint(str(saved)) if saved.exists() else None)
    patch.setattr(ray.train, "report", report)
    out.mkdir(parents=True, exist_ok=True)
    train_worker({"job": TrainJob(task, str(out), str(out / "checkpoints"), SILENT_BOARD)})
    return read_history(out / "history.jsonl")


def training_here(task: TrainTask, out: Path, label: str = "") -> TrainResult:
    """Stand for `run_training`: the same training in this process, with nothing left but what a reader needs."""
    with pytest.MonkeyPatch.context() as patch:
        history = train_here(task, out, patch)
    for scratch in ("reported", "checkpoints"):
        shutil.rmtree(out / scratch, ignore_errors=True)
    return TrainResult(out / "model", history)
