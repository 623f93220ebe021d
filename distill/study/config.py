"""Settings of a study: what LRKD is worth beside other ways to teach the student. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from cluster.config import ClusterSettings, Resources, Settings, TrainSettings
from distill.config import StudentSettings

# What the plain training loop of a study reads of `student.train`; `tuning` sets two more.
TRAIN_USED = frozenset(
    {
        "warmup_ratio",
        "schedule",
        "weight_decay",
        "max_grad_norm",
        "global_batch",
        "micro_batch",
        "precision",
        "length_buckets",
    }
)
SET_BY_ROWS = (
    "extractor",
    "per_perspective",
    "target",
    "alignment_weight",
    "normalise_targets",
    "auxiliary",
    "soft_label_weight",
    "margin_mse_weight",
    "margin_pairs",
    "perspective_verdict_weight",
    "shuffled_targets",
    "use_unlabelled",
    "baseline",
)


class DataSet(Settings):
    """One data set of the study: a run folder whose stages 1-pairs, 7-judgements and 8-targets have finished."""

    name: str = Field(pattern=r"^[\w.-]+$", description="names its records and its part of the table")
    run: Path = Field(description="the run folder")
    rows: tuple[str, ...] = Field((), description="names of its rows; empty takes those of the study")
    hidden_labels: float = Field(
        0, ge=0, lt=1, description="share of the queries whose training labels no row sees: their pairs are unlabelled"
    )


class Tuning(Settings):
    """The tuning budget, the same for every row: so many combinations of what has an effect on the row."""

    trials: PositiveInt = Field(6, description="per row, on dev")
    choose_by: Literal["accuracy", "macro_f1"] = Field("macro_f1", description="on dev, for trials and for rows")
    learning_rate: tuple[PositiveFloat, ...] = Field((5e-5, 1e-4, 2e-4), description="values to try")
    epochs: tuple[PositiveInt, ...] = Field((2, 4), description="values to try")
    teacher_weight: tuple[PositiveFloat, ...] = Field(
        (0.1, 0.5, 2.0), description="lambda, or the weight of KL or MarginMSE: the row says which"
    )
    normalise: tuple[bool, ...] = Field((True, False), description="unit vectors or not, with mse")


class StudyWorkers(Resources):
    """What one run takes: many small runs at once are quicker than one on all cores."""

    cpus_per_run: PositiveInt = Field(1, description="threads of each, too")
    gpus_per_run: NonNegativeFloat = Field(0, description="0 trains on CPUs")


class StudyConfig(Settings):
    """A study: rows x folds x seeds on every data set, after the same tuning for every row."""

    name: str = Field("study", pattern=r"^[\w.-]+$", description="names the folder runs/NAME")
    seed: int = Field(13, description="deals queries to folds and draws the trials; runs have their own `seeds`")
    cluster: ClusterSettings = ClusterSettings()
    data: tuple[DataSet, ...] = Field(min_length=1, description="finished runs whose pairs are learnt and tested")
    rows: tuple[str, ...] = Field((), description="names of rows; empty takes all of the file")
    rows_file: str | None = Field(None, description="one's own rows; empty takes the shipped distill/study/arms.toml")
    seeds: tuple[int, ...] = Field(
        (1, 2, 3), min_length=1, description="of the final runs; each row is trained once per fold and seed"
    )
    folds: PositiveInt = Field(
        5, description="train and test queries dealt to so many folds, each the test once; 1 keeps the run's own split"
    )
    tuning: Tuning = Tuning()
    student: StudentSettings = Field(
        StudentSettings(), description="what all rows share; a row adds what it is named for"
    )
    bootstrap_resamples: PositiveInt = Field(5000, description="resamples of queries for the intervals")
    records: Path = Field(Path("benchmarks/study"), description="folder of finished runs; fit to be committed")
    workers: StudyWorkers = StudyWorkers()

    @model_validator(mode="after")
    def _check(self) -> StudyConfig:
        for field, values in (("data", [d.name for d in self.data]), ("seeds", self.seeds), ("rows", self.rows)):
            if len(set(values)) != len(values):
                raise ValueError(f"{field}: {list(values)} holds one of them twice")
        given, plain = self.student, StudentSettings()
        for name in SET_BY_ROWS:
            if getattr(given, name) != getattr(plain, name):
                raise ValueError(f"student.{name}: rows set it, so it has no effect here. Change or add a row.")
        for name in without_effect(given.train):
            raise ValueError(f"student.train.{name}: has no effect in a study. Leave it out; see [tuning].")
        return self


def without_effect(train: TrainSettings) -> list[str]:
    """Return the settings that differ from the defaults although a study does not read them."""
    plain = TrainSettings()
    return [n for n in TrainSettings.model_fields if n not in TRAIN_USED and getattr(train, n) != getattr(plain, n)]
