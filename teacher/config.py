"""Settings of the teacher's training: SFT and DPO. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cluster.config import Fields, Settings, TrainSettings, check_best_by
from mpcot.config import (
    PerspectiveSettings,
    PreferenceSettings,
    SampleSettings,
    TeacherSettings,
)
from mpcot.sources.config import LabelSettings

PROMPT_FORM = ("few_shot", "description_chars")


class Lora(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), merged into the weights at the end."""

    kind: Literal["lora"] = "lora"
    rank: PositiveInt = Field(16, description="of the adapters")
    alpha: PositiveInt = Field(32, description="adapters are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="before the adapters")
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field("all-linear", description="names of linear layers")


class Full(Settings):
    """All weights are trained, or those of the upper layers."""

    kind: Literal["full"] = "full"
    frozen_layers: NonNegativeInt = Field(
        0, description="first layers that stay as they are, the embeddings too: no backward pass, no optimizer state"
    )


Tuning = Annotated[Lora | Full, Field(discriminator="kind")]


class SftSettings(Settings):
    """Stage 3: next-token loss on the answers of all perspectives."""

    tuning: Tuning = Lora()
    max_tokens: PositiveInt = Field(1024, description="prompt and answer; the prompt's start is cut, never the answer")
    origins: tuple[Literal["teacher", "seed"], ...] = Field(
        ("teacher", "seed"),
        description="rationales the teacher wrote itself, hinted ones too, and those the source brought",
    )
    use_unlabelled: bool = Field(
        False, description="rationales of unlabelled pairs with the majority's verdict count too, by their agreement"
    )
    max_rows: PositiveInt | None = Field(None, description="answers at the most; empty takes all")
    label_ratio: float | None = Field(
        None, ge=1, description="at most so many times as many answers of a label as of the rarest; empty keeps all"
    )
    verdict_weight: PositiveFloat = Field(
        1.0, description="weight of the verdict's tokens in the loss; a rationale's tokens weigh 1"
    )
    answers_per_sequence: PositiveInt = Field(
        8,
        description="answers of one pair that share a sequence and the beginning of their prompts; 1 shares nothing. "
        "`train.global_batch` and `train.micro_batch` count sequences",
    )
    held_out_share: float = Field(0.1, gt=0, lt=0.9, description="share of the training queries that judge the loss")
    dev_rows: PositiveInt = Field(200, description="at most so many held-out answers judge the loss")
    missing_labels: Literal["stop", "warn"] = Field("stop", description="what a label without any rationale does")
    train: TrainSettings = TrainSettings(learning_rate=5e-5, epochs=3)

    @model_validator(mode="after")
    def _figures(self) -> SftSettings:
        check_best_by("sft", self.train, ("loss",))
        if self.use_unlabelled and "teacher" not in self.origins:
            raise ValueError("sft.use_unlabelled has no effect: add 'teacher' to sft.origins")
        return self


class DpoSettings(Settings):
    """Stage 6: direct preference optimisation from precomputed reference log-probabilities."""

    tuning: Tuning = Lora()
    beta: PositiveFloat = Field(0.1, description="how much moving away from the reference costs")
    loss: Literal["sigmoid", "ipo"] = Field(
        "sigmoid", description="ipo wants a gap of 1 / (2 beta): between answers, or per token with length_normalised"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of flipped preferences assumed (cDPO)")
    length_normalised: bool = Field(
        False, description="log-probabilities per token; with ipo, this is TRL's form, and without it the paper's"
    )
    sft_weight: float = Field(0.0, ge=0, description="weight of the chosen answers' next-token loss beside DPO's")
    max_tokens: PositiveInt = Field(1024, description="prompt and answer; the prompt's start is cut, never the answer")
    share_prompts: bool = Field(True, description="both answers of a preference share the beginning of their prompts")
    dev_rows: PositiveInt = Field(200, description="at most so many preferences of dev pairs are judged")
    train: TrainSettings = TrainSettings(learning_rate=5e-6, epochs=3)

    @model_validator(mode="after")
    def _figures(self) -> DpoSettings:
        check_best_by("dpo", self.train, ("loss", "margin", "accuracy"))
        return self

    @model_validator(mode="after")
    def _smoothing(self) -> DpoSettings:
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError(
                f"dpo.label_smoothing {self.label_smoothing} has no effect with loss = 'ipo': set it to 0 or use "
                "loss = 'sigmoid'"
            )
        return self


class SftStage(Settings):
    """What stage 3 depends on: of stage 4 the prompt's form only, which the teacher is taught to answer."""

    reads_only: ClassVar[Fields] = {"samples": PROMPT_FORM}

    seed: int
    labels: LabelSettings
    perspectives: PerspectiveSettings
    teacher: TeacherSettings
    samples: SampleSettings
    sft: SftSettings


class PreferenceStage(Settings):
    """What stage 5 depends on: of DPO only what the reference log-probabilities depend on."""

    reads_only: ClassVar[Fields] = {"samples": PROMPT_FORM, "dpo": ("max_tokens", "share_prompts", "train.precision")}

    seed: int
    labels: LabelSettings
    perspectives: PerspectiveSettings
    samples: SampleSettings
    preferences: PreferenceSettings
    dpo: DpoSettings


class DpoStage(Settings):
    """What stage 6 depends on."""

    seed: int
    dpo: DpoSettings
