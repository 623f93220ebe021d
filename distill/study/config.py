"""Settings of a study that compares LRKD with other ways to teach the student. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from cluster.config import NAME_OF_FOLDER, ClusterSettings, Resources, Settings, TrainSettings
from distill.config import StudentSettings

# The settings of `student.train` that a study's own training loop reads; `tuning` sets two more.
TRAIN_USED = frozenset(
    {
        "warmup_ratio", "schedule", "weight_decay", "max_grad_norm", "global_batch", "micro_batch", "precision",
        "length_buckets", "head_learning_rate", "steps",
    }
)  # fmt: skip
SET_BY_ROWS = (
    "extractor", "per_perspective", "target", "target_pairs", "alignment_weight", "auxiliary", "soft_label_weight",
    "teacher_smoothing", "margin_mse_weight", "margin_pairs", "perspective_verdict_weight", "control", "use_unlabelled",
    "baseline",
)  # fmt: skip


Figure = Literal["log_loss", "auc", "macro_f1", "macro_f1_weighed", "accuracy"]


class Comparison(Settings):
    """The one test of a data set that is named before the runs. All other tests are corrected for their number."""

    row: str = Field(description="name of the row that is tested")
    against: str = Field(description="name of the row that it is compared with")
    metric: Figure = Field("macro_f1", description="figure in which they are compared")


class DataSet(Settings):
    """One data set of the study: a run folder in which 1-pairs, 7-judgements and 8-targets have finished."""

    name: str = Field(pattern=NAME_OF_FOLDER, description="names its records and its part of the table")
    run: Path = Field(description="the run folder")
    rows: tuple[str, ...] = Field((), description="names of its rows; if empty, those of the study")
    primary: Comparison | None = Field(None, description="its primary test; if empty, the study's")
    seeds: tuple[int, ...] = Field((), description="seeds of its final runs; if empty, those of the study")
    hidden_labels: float = Field(
        0, ge=0, lt=1, description="share of the queries whose training labels are hidden from every row"
    )
    hidden_unlabelled: float = Field(
        0, ge=0, lt=1, description="share of the queries whose unlabelled pairs are hidden from every row"
    )

    @property
    def hides(self) -> bool:
        """Whether it is a point of a learning curve, and not the whole data."""
        return self.hidden_labels > 0 or self.hidden_unlabelled > 0


class Tuning(Settings):
    """What is tried on dev, on the first fold and seed.

    Learning rate and epochs are chosen once for a data set, with the baseline; then the weight of the soft labels, with
    the row of that role; then lambda for each candidate. All rows share the first two, so that none is tuned more.
    """

    choose_by: Literal["log_loss", "auc", "macro_f1", "accuracy"] = Field(
        "log_loss", description="figure on dev that chooses the shared settings and the best row"
    )
    learning_rate: tuple[PositiveFloat, ...] = Field((1e-4, 2e-4), min_length=1, description="values to try")
    epochs: tuple[PositiveInt, ...] = Field((3, 6), min_length=1, description="values to try")
    soft_label_weight: tuple[PositiveFloat, ...] = Field((0.3, 1.0, 3.0), min_length=1, description="values to try")
    alignment_weight: tuple[PositiveFloat, ...] = Field(
        (0.1, 0.3, 1.0),
        min_length=1,
        description="values of lambda to try; `choose_by` decides among those with an alignment skill of 0.1 on dev",
    )


class StudyWorkers(Resources):
    """What one run takes. Many small runs side by side are quicker than one run on all cores."""

    cpus_per_run: PositiveInt = Field(1, description="CPUs, and threads, of one run")
    gpus_per_run: NonNegativeFloat = Field(0, description="0 trains on CPUs")


class StudyConfig(Settings):
    """A study: rows share what is tuned, and each is trained on every data set for each fold and seed."""

    name: str = Field("study", pattern=NAME_OF_FOLDER, description="names the folder runs/NAME")
    seed: int = Field(13, description="assigns queries to folds; runs have their own `seeds`")
    cluster: ClusterSettings = ClusterSettings()
    data: tuple[DataSet, ...] = Field(min_length=1, description="finished runs whose pairs are trained on and tested")
    rows: tuple[str, ...] = Field((), description="names of rows; if empty, all rows of the file")
    rows_file: str | None = Field(None, description="file of your own rows; if empty, distill/study/arms.toml")
    seeds: tuple[int, ...] = Field(
        (1, 2, 3), min_length=1, description="seeds of the final runs; each row is trained once per fold and seed"
    )
    primary_seeds: tuple[int, ...] = Field(
        (), description="seeds of the rows of the primary test, of its twin and its controls; if empty, `seeds`"
    )
    primary: Comparison | None = Field(
        None, description="the primary test of every data set that names none and hides no labels"
    )
    folds: PositiveInt = Field(
        5, description="parts of the train and test queries, each tested once; 1 keeps the run's own split"
    )
    tuning: Tuning = Tuning()
    student: StudentSettings = Field(
        StudentSettings(), description="what all rows share; a row adds the change that it is named for"
    )
    bootstrap_resamples: PositiveInt = Field(10000, description="resamples of queries and seeds for the intervals")
    equivalence_points: PositiveFloat = Field(
        1.0, description="two rows whose difference is surely smaller count as equal, in points of AUC, F1 and accuracy"
    )
    equivalence_nats: PositiveFloat = Field(0.01, description="the same for log-loss, in nats per pair")
    records: Path = Field(Path("benchmarks/study"), description="folder of finished runs; it may be committed")
    workers: StudyWorkers = StudyWorkers()

    @model_validator(mode="after")
    def _check(self) -> StudyConfig:
        seeds = [("seeds", self.seeds), ("primary_seeds", self.primary_seeds)]
        seeds += [(f"data.{one.name}.seeds", one.seeds) for one in self.data]
        for field, values in (("data", [d.name for d in self.data]), *seeds, ("rows", self.rows)):
            if len(set(values)) != len(values):
                raise ValueError(f"{field}: {list(values)} contains a value twice")
        if self.primary_seeds and not {*self.seeds} <= {*self.primary_seeds}:
            raise ValueError(f"primary_seeds: {list(self.primary_seeds)} lacks some of seeds {list(self.seeds)}")
        given, plain = self.student, StudentSettings()
        for name in SET_BY_ROWS:
            if getattr(given, name) != getattr(plain, name):
                raise ValueError(f"student.{name}: the rows set it, so it has no effect here. Change or add a row.")
        if given.train.steps is not None and len(self.tuning.epochs) > 1:
            raise ValueError(
                f"tuning.epochs: {list(self.tuning.epochs)} would all train alike, since student.train.steps decides "
                "the length. Leave steps out, or give one value."
            )
        for name in without_effect(given.train):
            raise ValueError(f"student.train.{name}: has no effect in a study. Leave it out; see [tuning].")
        return self


def margin(config: StudyConfig, metric: str) -> float:
    """Return the difference below which two rows count as equal, in the unit of the figure."""
    return config.equivalence_nats if metric == "log_loss" else config.equivalence_points / 100


def without_effect(train: TrainSettings) -> list[str]:
    """Return the settings that were changed from their defaults although a study does not read them."""
    plain = TrainSettings()
    return [n for n in TrainSettings.model_fields if n not in TRAIN_USED and getattr(train, n) != getattr(plain, n)]
