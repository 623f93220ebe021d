"""Several trainings by the same two workers of Ray Train: starting these takes far longer than to train tiny models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.training.driver import TrainResult, read_history
from cluster.training.task import TrainTask
from cluster.training.worker import TrainJob, train_worker
from tests.helpers.one_worker import SILENT_BOARD

Name = TypeVar("Name")


def _one_after_the_other(config: dict[str, Any]) -> None:
    ray.train.get_checkpoint = lambda: None  # or a training would go on from the checkpoint of the one before it
    for job in config["jobs"]:
        train_worker({"job": job})


def train_by_two(tasks: Mapping[Name, TrainTask], folder: Path) -> dict[Name, TrainResult]:
    """Do each training from its start, as the workers of `run_training` do; return the results by the tasks' names."""
    outs = {name: folder / str(place) for place, name in enumerate(tasks)}
    for out in outs.values():
        out.mkdir(parents=True)
    jobs = [
        TrainJob(task, str(outs[name]), str(outs[name] / "checkpoints"), SILENT_BOARD) for name, task in tasks.items()
    ]
    TorchTrainer(
        _one_after_the_other,
        train_loop_config={"jobs": jobs},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            storage_path=str(folder / "ray"), checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1)
        ),
    ).fit()
    return {name: TrainResult(out / "model", read_history(out / "history.jsonl")) for name, out in outs.items()}
