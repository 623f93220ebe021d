"""Settings of the teacher's training: SFT, preferences and DPO. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cluster.config import Fields, Settings, TrainSettings, Workers, check_best_by, check_one_rate
from mpcot.config import (
    PROMPT_FORM,
    PerspectiveSettings,
    SampleSettings,
    TeacherSettings,
)
from mpcot.sources.config import LabelSettings


class Lora(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), merged into the weights at the end."""

    kind: Literal["lora"] = "lora"
    rank: PositiveInt = Field(16, description="rank of the adapters")
    alpha: PositiveInt = Field(32, description="adapters are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the adapters")
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field("all-linear", description="names of linear layers")


class Full(Settings):
    """All weights are trained, or only those of the upper layers."""

    kind: Literal["full"] = "full"
    frozen_layers: NonNegativeInt = Field(
        0, description="number of first layers that are not trained; then the embeddings are not trained either"
    )


Tuning = Annotated[Lora | Full, Field(discriminator="kind")]


class SftSettings(Settings):
    """Stage 3: next-token loss on the answers of all perspectives."""

    tuning: Tuning = Lora()
    max_tokens: PositiveInt = Field(
        1024, description="of prompt and answer; a longer prompt loses of the product, never the query or the answer"
    )
    origins: tuple[Literal["teacher", "seed"], ...] = Field(
        ("teacher", "seed"),
        description="whose rationales: the teacher's own, with hinted ones, and the seeds of the source",
    )
    use_unlabelled: bool = Field(
        False,
        description="train on rationales of unlabelled pairs with the majority's verdict too, weighted by agreement",
    )
    max_rows: PositiveInt | None = Field(None, description="answers at most; if empty, all")
    label_ratio: float | None = Field(
        None, ge=1, description="most answers of a label for each of the rarest label; if empty, no limit"
    )
    verdict_weight: PositiveFloat = Field(
        1.0, description="weight of the verdict's tokens in the loss; a rationale's tokens weigh 1"
    )
    answers_per_sequence: PositiveInt = Field(
        8,
        description="answers to one pair in a sequence, where they share the beginning of their prompts; 1 shares "
        "nothing. `train.global_batch` and `train.micro_batch` count sequences",
    )
    held_out_share: float = Field(
        0.1, gt=0, lt=0.9, description="share of the training queries on which the loss is judged, at most"
    )
    dev_rows: PositiveInt = Field(
        200,
        description="answers on which the loss is judged, at most, but those of one query; all others are trained on",
    )
    missing_labels: Literal["stop", "warn"] = Field("stop", description="what happens if a label has no rationale")
    train: TrainSettings = TrainSettings(learning_rate=5e-5, epochs=3)

    @model_validator(mode="after")
    def _check(self) -> SftSettings:
        check_one_rate("sft", self.train)
        check_best_by("sft", self.train, ("loss",))
        if self.use_unlabelled and "teacher" not in self.origins:
            raise ValueError("sft.use_unlabelled has no effect. Add 'teacher' to sft.origins.")
        return self


class PreferenceSettings(Settings):
    """How stage 5 makes preferences, each of a chosen and a rejected answer."""

    no_effect = frozenset({"batch_size"})

    per_pair: PositiveInt = Field(4, description="the most preferences per pair of query and product")
    cross_perspective: bool = Field(True, description="chosen and rejected may come from different perspectives")
    prompt: Literal["rejected", "joint", "own"] = Field(
        "rejected",
        description="whose question both answers are compared under: that of the rejected one, one that names all "
        "perspectives, or each its own, with which DPO's constant does not cancel",
    )
    skip_disputed: bool = Field(
        False, description="reject no answer to a pair whose gold label the samples of all perspectives dispute"
    )
    margin_by: Literal["probability", "log_probability"] = Field("probability", description="what margins are taken of")
    min_margin: float = Field(0.0, ge=0, description="the least margin of chosen over rejected; logarithms are natural")
    max_margin: float | None = Field(None, gt=0, description="the largest margin; beyond it there is little to learn")
    unknown_margin: Literal["keep", "drop"] = Field("keep", description="answers without a probability, as seeds")
    pick: Literal["random", "widest", "narrowest"] = Field("random", description="which margins come first")
    fallback: tuple[Literal["rationales", "seeds"], ...] = Field(
        ("rationales", "seeds"), description="where chosen answers come from if no sample is right"
    )
    label_ratio: float | None = Field(None, ge=1, description="most per gold label, as a multiple of the rarest label")
    perspective_ratio: float | None = Field(None, ge=1, description="the same for perspectives, chosen and rejected")
    max_rows: PositiveInt | None = Field(None, description="the most preferences in all; empty takes all")
    when_empty: Literal["stop", "skip"] = Field("stop", description="without preferences: stop, or skip DPO")
    batch_size: PositiveInt = Field(16, description="rows in one forward pass of the reference model")
    workers: Workers = Field(Workers(), description="workers of the reference model")

    @model_validator(mode="after")
    def _check(self) -> PreferenceSettings:
        if self.max_margin is not None and self.max_margin < self.min_margin:
            raise ValueError(f"max_margin {self.max_margin:g} is below min_margin {self.min_margin:g}: nothing is left")
        if self.margin_by == "probability" and self.min_margin > 1:
            raise ValueError(f"min_margin {self.min_margin:g}: probabilities differ by 1 at most. Lower it")
        return self


class DpoSettings(Settings):
    """Stage 6: direct preference optimisation from precomputed reference log-probabilities."""

    tuning: Tuning = Lora()
    beta: PositiveFloat = Field(0.1, description="the cost of moving away from the reference model")
    loss: Literal["sigmoid", "ipo"] = Field(
        "sigmoid", description="ipo aims at a gap of 1 / (2 beta) between answers, or per token if length_normalised"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="assumed share of wrong preferences (cDPO)")
    length_normalised: bool = Field(
        False, description="use log-probabilities per token; with ipo this is TRL's form, otherwise the paper's"
    )
    sft_weight: float = Field(
        0.0, ge=0, description="weight of the next-token loss on chosen answers, which is added to DPO's"
    )
    max_tokens: PositiveInt = Field(
        1024, description="of prompt and answer; a longer prompt loses of the product, never the query or the answer"
    )
    share_prompts: bool = Field(True, description="compute the common beginning of both prompts of a preference once")
    dev_rows: PositiveInt = Field(200, description="preferences of dev pairs that are judged, at most")
    train: TrainSettings = TrainSettings(learning_rate=5e-6, epochs=3)

    @model_validator(mode="after")
    def _check(self) -> DpoSettings:
        check_one_rate("dpo", self.train)
        check_best_by("dpo", self.train, ("loss", "margin", "accuracy"))
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError(
                f"dpo.label_smoothing {self.label_smoothing} has no effect with loss = 'ipo'. Set it to 0, or set "
                "loss = 'sigmoid'."
            )
        return self


class SftStage(Settings):
    """What stage 3 depends on. Of stage 4 that is the form of the prompt, which the teacher learns to answer."""

    reads_only: ClassVar[Fields] = {"samples": PROMPT_FORM}

    seed: int
    labels: LabelSettings
    perspectives: PerspectiveSettings
    teacher: TeacherSettings
    samples: SampleSettings
    sft: SftSettings


class PreferenceStage(Settings):
    """What stage 5 depends on. Of DPO that is what decides the reference log-probabilities."""

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
