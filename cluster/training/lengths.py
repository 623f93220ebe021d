"""The estimated lengths of a training's rows, computed once by the driver for all workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.base.whole_files import whole_file
from cluster.training.task import Rows, TrainTask

LENGTHS = "lengths.npy"


def write_lengths(task: TrainTask, scratch: Path) -> None:
    """Write the length of each of N rows as N int32 to a file that workers map into memory.

    Raises:
        UserError: the disk is full or read-only.
    """
    rows = task.train_rows()
    if not _needed(task, rows):
        return
    with whole_file(scratch / LENGTHS) as partial, partial.open("wb") as file:
        np.save(file, _computed(task, rows))


def lengths_of(task: TrainTask, rows: Rows, scratch: Path) -> Sequence[int] | Any:
    """Return N lengths: from the driver's file, or computed where there is none. Where nobody asks, all are 0."""
    if not _needed(task, rows):
        return np.broadcast_to(np.int32(0), len(rows))
    path = scratch / LENGTHS
    return np.load(path, mmap_mode="r") if path.exists() else _computed(task, rows)


def _needed(task: TrainTask, rows: Rows) -> bool:
    return bool(task.settings.length_buckets) and task.groups(rows) is None


def _computed(task: TrainTask, rows: Rows) -> np.ndarray:
    return np.fromiter((task.length(rows[place]) for place in range(len(rows))), np.int32, len(rows))
