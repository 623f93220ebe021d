"""Settings of a study that compares LRKD with other ways to teach the student. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from cluster.config import ClusterSettings, Resources, Settings, TrainSettings
from distill.config import StudentSettings

# The settings of `student.train` that a study's own training loop reads; `tuning` sets two more.
TRAIN_USED = frozenset(
    {
        "warmup_ratio", "schedule", "weight_decay", "max_grad_norm", "global_batch", "micro_batch", "precision",
        "length_buckets", "head_learning_rate", "steps",
    }
)  # fmt: skip
SET_BY_ROWS = (
    "extractor", "per_perspective", "target", "alignment_weight", "normalise_targets", "auxiliary", "soft_label_weight",
    "margin_mse_weight", "margin_pairs", "perspective_verdict_weight", "control", "use_unlabelled", "baseline",
)  # fmt: skip


class DataSet(Settings):
    """One data set of the study: a run folder in which 1-pairs, 7-judgements and 8-targets have finished."""

    name: str = Field(pattern=r"^[\w.-]+$", description="names its records and its part of the table")
    run: Path = Field(description="the run folder")
    rows: tuple[str, ...] = Field((), description="names of its rows; if empty, those of the study")
    hidden_labels: float = Field(
        0, ge=0, lt=1, description="share of the queries whose training labels are hidden from every row"
    )


class Tuning(Settings):
    """The tuning budget, which is the same for every row."""

    trials: PositiveInt = Field(6, description="combinations of values that each row tries on dev")
    choose_by: Literal["accuracy", "macro_f1"] = Field(
        "macro_f1", description="figure on dev that chooses trials and rows"
    )
    learning_rate: tuple[PositiveFloat, ...] = Field((5e-5, 1e-4, 2e-4), description="values to try")
    epochs: tuple[PositiveInt, ...] = Field((2, 4), description="values to try")
    teacher_weight: tuple[PositiveFloat, ...] = Field(
        (0.1, 0.5, 2.0), description="values of lambda, or of the weight of KL or MarginMSE: the row says which"
    )
    normalise: tuple[bool, ...] = Field((True, False), description="whether mse compares unit vectors: values to try")


class StudyWorkers(Resources):
    """What one run takes. Many small runs side by side are quicker than one run on all cores."""

    cpus_per_run: PositiveInt = Field(1, description="CPUs, and threads, of one run")
    gpus_per_run: NonNegativeFloat = Field(0, description="0 trains on CPUs")


class StudyConfig(Settings):
    """A study: every row is tuned alike, and then trained on every data set for each fold and seed."""

    name: str = Field("study", pattern=r"^[\w.-]+$", description="names the folder runs/NAME")
    seed: int = Field(13, description="assigns queries to folds; runs have their own `seeds`")
    cluster: ClusterSettings = ClusterSettings()
    data: tuple[DataSet, ...] = Field(min_length=1, description="finished runs whose pairs are trained on and tested")
    rows: tuple[str, ...] = Field((), description="names of rows; if empty, all rows of the file")
    rows_file: str | None = Field(None, description="file of your own rows; if empty, distill/study/arms.toml")
    seeds: tuple[int, ...] = Field(
        (1, 2, 3), min_length=1, description="seeds of the final runs; each row is trained once per fold and seed"
    )
    folds: PositiveInt = Field(
        5, description="parts of the train and test queries, each tested once; 1 keeps the run's own split"
    )
    tuning: Tuning = Tuning()
    student: StudentSettings = Field(
        StudentSettings(), description="what all rows share; a row adds the change that it is named for"
    )
    bootstrap_resamples: PositiveInt = Field(5000, description="resamples of queries for the intervals")
    records: Path = Field(Path("benchmarks/study"), description="folder of finished runs; it may be committed")
    workers: StudyWorkers = StudyWorkers()

    @model_validator(mode="after")
    def _check(self) -> StudyConfig:
        for field, values in (("data", [d.name for d in self.data]), ("seeds", self.seeds), ("rows", self.rows)):
            if len(set(values)) != len(values):
                raise ValueError(f"{field}: {list(values)} contains a value twice")
        given, plain = self.student, StudentSettings()
        for name in SET_BY_ROWS:
            if getattr(given, name) != getattr(plain, name):
                raise ValueError(f"student.{name}: the rows set it, so it has no effect here. Change or add a row.")
        for name in without_effect(given.train):
            raise ValueError(f"student.train.{name}: has no effect in a study. Leave it out; see [tuning].")
        return self


def without_effect(train: TrainSettings) -> list[str]:
    """Return the settings that were changed from their defaults although a study does not read them."""
    plain = TrainSettings()
    return [n for n in TrainSettings.model_fields if n not in TRAIN_USED and getattr(train, n) != getattr(plain, n)]
