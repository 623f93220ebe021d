"""Settings of the Ray connection and of trainings. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

NAME_OF_FOLDER = r"^\.*[\w-][\w.-]*$"  # not of dots alone
Fields = Mapping[str, tuple[str, ...]]


class Settings(BaseModel):
    """Base of every settings class, which is frozen and refuses unknown keys.

    `no_effect` names the fields that change the speed but never a result, and `reads_only` names for a section the only
    fields (dotted) that matter here. Fingerprints leave out the former, and all fields but the latter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    no_effect: ClassVar[frozenset[str]] = frozenset()
    reads_only: ClassVar[Fields] = {}


class Resources(Settings):
    """Settings that change where and how fast work runs but never its result, so fingerprints leave them out."""


class ClusterSettings(Resources):
    """How to reach Ray, or how large a local Ray should be."""

    address: str | None = Field(None, description="address of a Ray cluster; empty starts a local Ray for this run")
    num_cpus: PositiveInt | None = Field(None, description="CPUs of a local Ray; empty takes all of this machine")
    object_store_mb: PositiveInt = Field(512, description="size of a local Ray's object store")


class Offload(Settings):
    """Where DeepSpeed keeps optimizer states and, with ZeRO-3, parameters."""

    optimizer: Literal["none", "cpu"] = Field(
        "none", description="where the states of the optimizer are; cpu needs zero_stage 1, 2 or 3"
    )
    parameters: Literal["none", "cpu"] = Field("none", description="where the weights are; cpu needs zero_stage 3")


class Workers(Resources):
    """Ray Train workers. Their number may change how a result is rounded, but not what it means."""

    count: PositiveInt = Field(1, description="number of processes")
    cpus_per_worker: PositiveInt = Field(1, description="CPUs of each process, and its threads")
    gpus_per_worker: NonNegativeInt = Field(0, description="GPUs of each process; 0 trains on CPUs")
    max_failures: NonNegativeInt = Field(2, description="how often a training is restarted after a worker has died")


class Mlflow(Resources):
    """A server that gets a training's settings and curves at its end; files for TensorBoard are always written."""

    tracking_uri: str = Field(min_length=1, description="address of the server, such as http://mlflow.example:5000")
    experiment: str = Field("broadfast", min_length=1, description="name of the experiment on the server")


DevFigure = Literal["loss", "macro_f1", "accuracy", "margin", "ndcg"]


class TrainSettings(Settings):
    """What the trainings of SFT, DPO and LRKD share: optimisation, precision, DeepSpeed and workers."""

    no_effect = frozenset({"checkpoint_every_steps", "checkpoints", "gradient_checkpointing", "mlflow", "staging"})

    epochs: PositiveInt = Field(3, description="passes over the rows")
    steps: PositiveInt | None = Field(
        None, description="optimizer steps, which then decide the length of the training in place of epochs"
    )
    learning_rate: PositiveFloat = Field(5e-5, description="learning rate after the warm-up, where it is highest")
    head_learning_rate: PositiveFloat | None = Field(
        None, description="the same for what the pretrained model did not bring; empty takes learning_rate"
    )
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="how the learning rate falls after the warm-up"
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay of AdamW")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this norm")
    global_batch: PositiveInt = Field(32, description="examples per optimizer step over all workers")
    micro_batch: PositiveInt = Field(8, description="examples per forward pass of one worker")
    precision: Literal["auto", "fp32", "bf16", "bf16_mixed"] = Field(
        "auto", description="auto: bf16 on GPUs, bf16_mixed on processors that multiply bf16, else fp32"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="what DeepSpeed divides among workers: optimizer states (1), gradients too (2), weights too (3)"
    )
    offload: Offload = Offload()
    gradient_checkpointing: bool = Field(
        False, description="recompute activations instead of keeping them, which takes less memory and more time"
    )
    checkpoint_every_steps: PositiveInt = Field(
        100, description="steps between checkpoints, which a killed training may lose"
    )
    checkpoints: str | None = Field(
        None,
        pattern="^[a-z0-9]+://",
        description="where checkpoints are kept while a training runs, as a URI such as s3://bucket/folder; empty "
        "keeps them beside the results",
    )
    staging: str | None = Field(
        None,
        description="folder of a worker's own machine in which it writes its part of a checkpoint before that is kept, "
        "such as a fast disk; empty writes it beside the results",
    )
    evaluate_every_epochs: PositiveInt = Field(1, description="epochs between evaluations on the held-out rows")
    keep: Literal["last", "best"] = Field(
        "last", description="which weights are saved: those of the last step, or of the best evaluation after step 0"
    )
    best_by: DevFigure | None = Field(
        None, description="with keep = 'best', the held-out figure that decides; of equals the earliest wins"
    )
    patience_evaluations: PositiveInt | None = Field(
        None, description="with keep = 'best', stop after so many evaluations in a row without a better one"
    )
    length_buckets: NonNegativeInt = Field(
        8,
        description="global batches among which rows of similar length are put together, for less padding; 1 sorts "
        "within a batch only and leaves every batch a fair sample, 0 sorts nothing",
    )
    workers: Workers = Workers()
    mlflow: Mlflow | None = None

    def steps_over(self, rows: int) -> int:
        """Return the optimizer steps of a training over so many rows."""
        return self.steps or self.epochs * -(-rows // self.global_batch)

    @property
    def evaluations(self) -> int:
        """How many evaluations follow the first step of a training by epochs, if it does not stop early."""
        return -(-self.epochs // self.evaluate_every_epochs)

    @model_validator(mode="after")
    def _keeping(self) -> TrainSettings:
        """Refuse to keep the best without knowing by what, and refuse settings that have no effect."""
        if self.keep == "best" and self.best_by is None:
            raise ValueError("keep = 'best' needs best_by: 'loss', or another figure of the held-out rows")
        if self.keep == "last":
            for name in ("best_by", "patience_evaluations"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} has no effect with keep = 'last': set keep = 'best', or leave it out")
        patience = self.patience_evaluations
        if patience is not None and self.steps is None and patience >= self.evaluations:
            raise ValueError(
                f"patience_evaluations {patience} never stops a training of {self.evaluations} evaluations: lower it, "
                "or evaluate more often"
            )
        return self


def check_one_rate(section: str, settings: TrainSettings) -> None:
    """Refuse a `head_learning_rate` where the pretrained model has all that is trained.

    Raises:
        ValueError: the message names the setting.
    """
    if settings.head_learning_rate is not None:
        raise ValueError(f"{section}.train.head_learning_rate has no effect: no new head is trained. Leave it out.")


def check_best_by(section: str, settings: TrainSettings, offered: tuple[DevFigure, ...]) -> None:
    """Refuse a `best_by` that the section's task does not measure.

    Raises:
        ValueError: the message names the figures that are measured.
    """
    if settings.best_by is not None and settings.best_by not in offered:
        known = ", ".join(offered)
        raise ValueError(f"{section}.train.best_by: {settings.best_by!r} is not measured here, only {known}")
