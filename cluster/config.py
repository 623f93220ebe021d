"""Settings of where work runs: the Ray connection and the training workers. Imports nothing heavy."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt


class Settings(BaseModel):
    """Base of every settings class: frozen, unknown keys refused.

    `no_effect` names fields that change speed but never a result: fingerprints leave them out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    no_effect: ClassVar[frozenset[str]] = frozenset()


class Resources(Settings):
    """Settings that change where and how fast work runs, never its result: left out of fingerprints."""


class ClusterSettings(Resources):
    """How to reach Ray, or how large a local Ray to start."""

    address: str | None = Field(None, description="Ray address; empty starts a local Ray for this run")
    num_cpus: PositiveInt | None = Field(None, description="CPUs of a local Ray; empty takes all")
    object_store_mb: PositiveInt = Field(512, description="object store of a local Ray")


class Offload(Settings):
    """Where DeepSpeed keeps optimizer states and, with ZeRO-3, parameters."""

    optimizer: Literal["none", "cpu"] = "none"
    parameters: Literal["none", "cpu"] = "none"


class Workers(Resources):
    """Ray Train workers. Their number may change the rounding of a result, not its meaning."""

    count: PositiveInt = 1
    cpus_per_worker: PositiveInt = 1
    gpus_per_worker: NonNegativeInt = 0
    max_failures: NonNegativeInt = Field(2, description="restarts of a training whose worker died")


class TrainSettings(Settings):
    """What SFT, DPO and LRKD share: optimisation, precision, DeepSpeed and workers."""

    no_effect = frozenset({"checkpoint_every_steps", "gradient_checkpointing"})

    epochs: PositiveInt = 3
    learning_rate: PositiveFloat = 5e-5
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    global_batch: PositiveInt = Field(32, description="examples per optimizer step over all workers")
    micro_batch: PositiveInt = Field(8, description="examples per forward pass of one worker")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 on GPUs and on processors that multiply it, else fp32"
    )
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Offload = Offload()
    gradient_checkpointing: bool = False
    checkpoint_every_steps: PositiveInt = 100
    evaluate_every_epochs: PositiveInt = 1
    length_buckets: NonNegativeInt = Field(
        8,
        description="global batches over which rows of like length are put together, for less padding; 1 sorts within "
        "a batch only and leaves every batch a fair sample, 0 sorts nothing",
    )
    workers: Workers = Workers()
