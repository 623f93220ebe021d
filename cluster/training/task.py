"""What SFT, DPO and LRKD each tell the training harness about data, model, loss, evaluation and saving."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.base.processor import Precision, resolve_precision
from cluster.config import TrainSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

Row = dict[str, Any]
Rows = Sequence[Row]
PAD_MULTIPLE = 16  # tokens; batches of a few distinct lengths can reuse prepared kernels


def padded_length(tokens: int) -> int:
    """Return the length in tokens to which a batch is padded if its longest sequence has so many."""
    return -(-tokens // PAD_MULTIPLE) * PAD_MULTIPLE


@dataclass
class TrainTask(ABC):
    """One training. It is pickled for the workers, so it contains paths and settings but never tensors."""

    settings: TrainSettings
    seed: int
    # The share of steps that are done, from 0 to 1, for losses that change over time. The training loop sets it.
    progress: float = field(default=0.0, init=False)

    @property
    def precision(self) -> Precision:
        """The number format of the training on the machine that asks."""
        return resolve_precision(self.settings.precision, self.settings.workers.gpus_per_worker > 0)

    @abstractmethod
    def train_rows(self) -> Rows:
        """Return the training rows; every worker calls this once."""

    @abstractmethod
    def dev_rows(self) -> Rows:
        """Return the held-out rows, if there are any."""

    @abstractmethod
    def length(self, row: Row) -> int:
        """Return a cheap estimate of a row's length, to put rows of similar length together."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the model in fp32 on the CPU; the harness moves and casts it."""

    @abstractmethod
    def collate(self, rows: list[Row]) -> dict[str, Any]:
        """Return tensors, and in `units` the number of things over which the loss is averaged."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and further figures, all summed over the units of the batch."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: dict[str, Any]) -> list[Row]:
        """Return one plain record per row of the batch; this is called without gradients."""

    @abstractmethod
    def summarise(self, records: list[Row]) -> dict[str, float]:
        """Return figures over all held-out records, `loss` among them."""

    @abstractmethod
    def save(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write the final model folder from the trained parameters, on the CPU of rank 0."""


def epoch_batches(lengths: list[int], settings: TrainSettings, seed: int, epoch: int) -> list[list[int]]:
    """Return the global batches of the epoch as row numbers, the same for any number of workers.

    Rows are shuffled. With `length_buckets`, rows of similar length are put together within windows of so many batches,
    and the batches are shuffled again. The last batch is filled with the first rows of the epoch.
    """
    import numpy as np

    draw = np.random.default_rng([seed, epoch])
    order = draw.permutation(len(lengths))
    size = settings.global_batch
    if short := -len(order) % size:
        order = np.concatenate([order, np.resize(order, short)])
    if window := size * settings.length_buckets:
        windows = np.split(order, range(window, len(order), window))
        sizes = np.asarray(lengths)
        order = np.concatenate([w[np.argsort(sizes[w], kind="stable")] for w in windows])
    batches = order.reshape(-1, size)
    return batches[draw.permutation(len(batches))].tolist()
