"""Which runs a study consists of, as data: trials on dev, then the chosen settings over folds and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from cluster.base.stage_folder import digest
from distill.config import StudentSettings
from distill.study.arms import Reading, StudyRow
from distill.study.config import StudyConfig, Tuning

# Part of every key. Raise it when the training changes the result of a run, or when a setting gets another default:
# keys hold only what differs from the defaults, so that a new setting does not make old records worthless.
FORMAT = 7


@dataclass(frozen=True)
class Run:
    """One training of one row on one data set.

    A trial is judged on the dev split only, a final run on the test split of its fold as well.
    """

    data: str
    row: str
    purpose: Literal["trial", "final"]
    student: StudentSettings
    seed: int
    fold: int
    reading: Reading | None = None

    def key(self, config: StudyConfig, fingerprint: str, model: str) -> str:
        """Return a digest of everything that decides the run's result.

        Args:
            fingerprint: digest of the data set's content.
            model: fingerprint of the starting encoder, whose path may differ between machines.
        """
        folds_seed = None if config.folds == 1 else config.seed
        own = [self.row, self.purpose, self.seed, self.fold, config.folds, folds_seed]
        return digest([FORMAT, fingerprint, model, own, changed_settings(self.student) | read_by(self.reading)])


def changed_settings(student: StudentSettings) -> dict[str, Any]:
    """Return the settings that decide a result and differ from the defaults."""
    changed = student.model_dump(mode="json", exclude_defaults=True, exclude={"model": True, "train": {"workers"}})
    # The extractor is written in full: without its defaults it would lose its kind, and mlp would look like gat.
    return changed | {"extractor": student.extractor.model_dump(mode="json")}


def read_by(reading: Reading | None) -> dict[str, Any]:
    """Return who reads the rationales, which no student does unless its row says so."""
    return {} if reading is None else {"reading": reading.model_dump(mode="json")}


def trials_of_training(student: StudentSettings, tuning: Tuning) -> list[StudentSettings]:
    """Return the student with every learning rate and number of epochs that is tried."""
    values = product(tuning.learning_rate, tuning.epochs)
    return [_trained(student, learning_rate=rate, epochs=epochs) for rate, epochs in values]


def trials_of_weight(student: StudentSettings, name: str, tuning: Tuning) -> list[StudentSettings]:
    """Return the student with every value of the weight `name` that is tried."""
    return [student.model_copy(update={name: value}) for value in getattr(tuning, name)]


def with_training_of(student: StudentSettings, chosen: StudentSettings) -> StudentSettings:
    """Return the student with the learning rate and epochs of the chosen one."""
    return _trained(student, learning_rate=chosen.train.learning_rate, epochs=chosen.train.epochs)


def _trained(student: StudentSettings, **values: float) -> StudentSettings:
    return student.model_copy(update={"train": student.train.model_copy(update=values)})


def trial_runs(data: str, row: StudyRow, students: Sequence[StudentSettings], config: StudyConfig) -> list[Run]:
    """Return a row's trials as runs, all with the first seed and on the first fold."""
    return [Run(data, row.name, "trial", student, config.seeds[0], 0, row.reading) for student in students]


def final_runs(
    data: str, row: StudyRow, student: StudentSettings, config: StudyConfig, seeds: Sequence[int]
) -> list[Run]:
    """Return the runs with the chosen settings: every seed on every fold."""
    places = product(seeds, range(config.folds))
    return [Run(data, row.name, "final", student, seed, fold, row.reading) for seed, fold in places]
