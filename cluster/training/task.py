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


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the seed of one worker's step, so that dropout is the same after an interruption as without one."""
    return hash((seed, step, rank)) & 0x7FFFFFFF


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

    def groups(self, rows: Rows) -> Sequence[int] | None:
        """Return every row's group if the loss compares the rows of a group, which should meet in a batch then."""
        return None

    def is_head(self, name: str) -> bool:
        """Say whether the pretrained model did not bring this parameter, so that `head_learning_rate` is its rate."""
        return False

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


def parameter_groups(task: TrainTask, model: nn.Module) -> list[dict[str, Any]]:
    """Return the trained parameters as groups for an optimizer, each with its learning rate.

    The encoder's group comes first. Without a `head_learning_rate` there is one group.
    """
    rate, head_rate = task.settings.learning_rate, task.settings.head_learning_rate
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if head_rate is None:
        return [{"params": [parameter for _, parameter in named], "lr": rate}]
    groups = [
        {"params": [parameter for name, parameter in named if task.is_head(name) == head], "lr": own}
        for head, own in ((False, rate), (True, head_rate))
    ]
    return [group for group in groups if group["params"]]


def worker_share(batch: list[int], rank: int, world: int, grouped: bool) -> list[int]:
    """Return one worker's rows of a global batch: every `world`-th one or, with groups, those in a row."""
    size = len(batch) // world
    return batch[rank * size : (rank + 1) * size] if grouped else batch[rank::world]


def epoch_batches(
    lengths: Sequence[int], settings: TrainSettings, seed: int, epoch: int, groups: Sequence[int] | None = None
) -> list[list[int]]:
    """Return what `epoch_rows` does, as lists."""
    found: list[list[int]] = epoch_rows(lengths, settings, seed, epoch, groups).tolist()
    return found


def epoch_rows(
    lengths: Sequence[int], settings: TrainSettings, seed: int, epoch: int, groups: Sequence[int] | None = None
) -> Any:
    """Return the global batches of the epoch as an array of row numbers, the same for any number of workers.

    Rows are shuffled. With `length_buckets`, rows of similar length are put together within windows of so many batches,
    and the batches are shuffled again. The last batch is filled with the first rows of the epoch.

    With `groups`, groups are shuffled instead, the rows of a group follow one another, and lengths do not matter. A
    group is cut where a batch ends, and in its losses only those rows see one another that meet in a micro batch.
    """
    import numpy as np

    draw = np.random.default_rng([seed, epoch])
    order = draw.permutation(len(lengths))
    if groups is not None:
        kinds, kind = np.unique(np.asarray(groups), return_inverse=True)
        order = order[np.argsort(draw.permutation(len(kinds))[kind[order]], kind="stable")]
    size = settings.global_batch
    if short := -len(order) % size:
        order = np.concatenate([order, np.resize(order, short)])
    if (window := size * settings.length_buckets) and groups is None:
        windows = np.split(order, range(window, len(order), window))
        sizes = np.asarray(lengths)
        order = np.concatenate([w[np.argsort(sizes[w], kind="stable")] for w in windows])
    batches = order.reshape(-1, size)
    return batches[draw.permutation(len(batches))]
