"""Decides which evaluation a training keeps and when it stops early, and keeps the best weights so far on disk.

The decisions follow from the history alone, so a training that resumes from a checkpoint decides as before.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.base.errors import UserError
from cluster.base.whole_files import whole_file
from cluster.config import TrainSettings

if TYPE_CHECKING:
    from torch import Tensor

Row = dict[str, Any]

WEIGHTS = "best.safetensors"
LESS_IS_BETTER = ("loss",)


def evaluations(history: Sequence[Row]) -> list[Row]:
    """Return the evaluations of trained weights, without that of step 0, before training."""
    return [row for row in history if row["split"] == "dev" and row["step"]]


def best(history: Sequence[Row], settings: TrainSettings) -> Row | None:
    """Return the best evaluation by `best_by`, of equals the earliest, or None where no figure is a number."""
    name = settings.best_by
    assert name is not None, "only asked with keep = 'best'"
    sign = -1 if name in LESS_IS_BETTER else 1
    rows = [row for row in evaluations(history) if math.isfinite(row[name])]
    return max(rows, key=lambda row: sign * row[name], default=None)


def waited_enough(history: Sequence[Row], settings: TrainSettings) -> bool:
    """Say whether none of the last `patience_evaluations` evaluations was better than one before them."""
    patience = settings.patience_evaluations
    if patience is None:
        return False
    found = best(history, settings)
    since = found["step"] if found else 0
    return sum(row["step"] > since for row in evaluations(history)) >= patience


def mark_kept(history: Sequence[Row], settings: TrainSettings) -> None:
    """Mark the evaluation whose weights are saved with `kept`; without held-out rows there is none.

    Raises:
        UserError: the figure to be best by was not a number in any evaluation.
    """
    rows = evaluations(history)
    chosen = best(history, settings) if settings.keep == "best" else rows[-1] if rows else None
    if chosen is not None:
        chosen["kept"] = True
    elif settings.keep == "best":
        raise UserError(
            f"train.best_by {settings.best_by!r} was not a number in any of {len(rows)} evaluations. Lower "
            "train.learning_rate, or set train.keep = 'last'."
        )


def before_training(history: Sequence[Row]) -> Row:
    """Return the held-out figures of step 0, or nothing without held-out rows."""
    return next((row for row in history if row["split"] == "dev"), {})


def kept(history: Sequence[Row]) -> Row:
    """Return the held-out figures of the weights that were saved, or nothing without held-out rows."""
    return next((row for row in history if row.get("kept")), {})


class BestWeights:
    """The best weights so far, in one file beside the checkpoints and a copy in each of them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / WEIGHTS

    def put(self, state: dict[str, Tensor]) -> None:
        """Write the weights, in place of earlier ones."""
        from safetensors.torch import save_file

        with whole_file(self.path) as partial:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial)

    def get(self) -> dict[str, Tensor]:
        """Read the weights."""
        from safetensors.torch import load_file

        return load_file(self.path)

    def copy_to(self, checkpoint: Path) -> None:
        """Add the weights to a checkpoint's folder."""
        if self.path.exists():
            shutil.copyfile(self.path, checkpoint / WEIGHTS)

    def copy_from(self, checkpoint: Path) -> None:
        """Return to the weights that were best when the checkpoint was made."""
        if (checkpoint / WEIGHTS).exists():
            with whole_file(self.path) as partial:
                shutil.copyfile(checkpoint / WEIGHTS, partial)
