"""A worker's part of a training in this very process: Ray Train's session is played, DeepSpeed is real."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch.distributed as dist

from cluster.training.task import TrainTask
from cluster.training.worker import TrainJob, train_worker


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
    board = SimpleNamespace(put=SimpleNamespace(remote=lambda *_: None))
    out.mkdir(parents=True, exist_ok=True)
    train_worker({"job": TrainJob(task, str(out), str(out / "checkpoints"), board)})
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
