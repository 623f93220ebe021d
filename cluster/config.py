"""Settings of where work runs: the Ray connection and the training workers. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

Fields = Mapping[str, tuple[str, ...]]


class Settings(BaseModel):
    """Base of every settings class: frozen, unknown keys refused.

    `no_effect` names fields that change speed but never a result: fingerprints leave them out. `reads_only` names the
    fields (dotted) of a section of which no other field matters here: fingerprints leave the others out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    no_effect: ClassVar[frozenset[str]] = frozenset()
    reads_only: ClassVar[Fields] = {}


class Resources(Settings):
    """Settings that change where and how fast work runs, never its result: left out of fingerprints."""


class ClusterSettings(Resources):
    """How to reach Ray, or how large a local Ray to start."""

    address: str | None = Field(None, description="Ray address; empty starts a local Ray for this run")
    num_cpus: PositiveInt | None = Field(None, description="CPUs of a local Ray; empty takes all")
    object_store_mb: PositiveInt = Field(512, description="object store of a local Ray")


class Offload(Settings):
    """Where DeepSpeed keeps optimizer states and, with ZeRO-3, parameters."""

    optimizer: Literal["none", "cpu"] = Field("none", description="states of the optimizer")
    parameters: Literal["none", "cpu"] = Field("none", description="weights; needs zero_stage 3")


class Workers(Resources):
    """Ray Train workers. Their number may change the rounding of a result, not its meaning."""

    count: PositiveInt = Field(1, description="processes, one GPU or several CPUs each")
    cpus_per_worker: PositiveInt = Field(1, description="threads of each, too")
    gpus_per_worker: NonNegativeInt = Field(0, description="0 trains on CPUs")
    max_failures: NonNegativeInt = Field(2, description="restarts of a training whose worker died")


class Mlflow(Resources):
    """A server that a training's settings and curves are sent to when it ends; TensorBoard's files are always there."""

    tracking_uri: str = Field(min_length=1, description="such as http://mlflow.example:5000")
    experiment: str = Field("broadfast", min_length=1, description="name of the experiment there")


DevFigure = Literal["loss", "macro_f1", "accuracy", "margin"]


class TrainSettings(Settings):
    """What SFT, DPO and LRKD share: optimisation, precision, DeepSpeed and workers."""

    no_effect = frozenset({"checkpoint_every_steps", "checkpoints", "gradient_checkpointing", "mlflow"})

    epochs: PositiveInt = Field(3, description="passes over the rows")
    learning_rate: PositiveFloat = Field(5e-5, description="the highest, after the warm-up")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="of the learning rate after the warm-up"
    )
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this norm")
    global_batch: PositiveInt = Field(32, description="examples per optimizer step over all workers")
    micro_batch: PositiveInt = Field(8, description="examples per forward pass of one worker")
    precision: Literal["auto", "fp32", "bf16", "bf16_mixed"] = Field(
        "auto", description="auto: bf16 on GPUs, bf16_mixed on processors that multiply bf16, else fp32"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="what DeepSpeed shares out among workers: 1 optimizer states, 2 gradients too, 3 weights too"
    )
    offload: Offload = Offload()
    gradient_checkpointing: bool = Field(
        False, description="recompute activations instead of keeping them: less memory, slower"
    )
    checkpoint_every_steps: PositiveInt = Field(100, description="what a killed training loses at the most")
    checkpoints: str | None = Field(
        None,
        pattern="^[a-z0-9]+://",
        description="storage of checkpoints while a training runs, as a URI such as s3://bucket/folder; empty keeps "
        "them beside the results",
    )
    evaluate_every_epochs: PositiveInt = Field(1, description="how often held-out rows are judged")
    keep: Literal["last", "best"] = Field(
        "last", description="whose weights are saved: the last step's, or those of the best evaluation after step 0"
    )
    best_by: DevFigure | None = Field(
        None, description="with keep = 'best', the held-out figure that says which is best; of equals the earliest wins"
    )
    patience_evaluations: PositiveInt | None = Field(
        None, description="with keep = 'best', stop after so many evaluations in a row that were not the best"
    )
    length_buckets: NonNegativeInt = Field(
        8,
        description="global batches over which rows of like length are put together, for less padding; 1 sorts within "
        "a batch only and leaves every batch a fair sample, 0 sorts nothing",
    )
    workers: Workers = Workers()
    mlflow: Mlflow | None = None

    @property
    def evaluations(self) -> int:
        """How often the held-out rows are judged after training has begun, without an early stop."""
        return -(-self.epochs // self.evaluate_every_epochs)

    @model_validator(mode="after")
    def _keeping(self) -> TrainSettings:
        """Which evaluation is best must be said, and what has no effect must not."""
        if self.keep == "best" and self.best_by is None:
            raise ValueError("keep = 'best' needs best_by: 'loss', or another figure of the held-out rows")
        if self.keep == "last":
            for name in ("best_by", "patience_evaluations"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} has no effect with keep = 'last': set keep = 'best' or leave it out")
        patience = self.patience_evaluations
        if patience is not None and patience >= self.evaluations:
            raise ValueError(
                f"patience_evaluations {patience} never stops a training of {self.evaluations} evaluations: lower it, "
                "or evaluate more often"
            )
        return self


def check_best_by(section: str, settings: TrainSettings, offered: tuple[DevFigure, ...]) -> None:
    """Refuse a `best_by` that the section's task does not measure.

    Raises:
        ValueError: names the figures that there are.
    """
    if settings.best_by is not None and settings.best_by not in offered:
        known = ", ".join(offered)
        raise ValueError(f"{section}.train.best_by: {settings.best_by!r} is not measured here, only {known}")
