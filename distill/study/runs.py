"""Which runs a study consists of, as data: trials on dev, then the chosen trial over folds and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from cluster.base.errors import UserError
from cluster.base.stage_folder import digest
from distill.config import StudentSettings
from distill.study.arms import StudyRow, student_of
from distill.study.config import StudyConfig

# Part of every key. Raise it when the training changes the result of a run, or when a setting gets another default:
# keys hold only what differs from the defaults, so that a new setting does not make old records worthless.
FORMAT = 2


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

    def key(self, config: StudyConfig, fingerprint: str, model: str) -> str:
        """Return a digest of everything that decides the run's result.

        Args:
            fingerprint: digest of the data set's content.
            model: fingerprint of the starting encoder, whose path may differ between machines.
        """
        folds_seed = None if config.folds == 1 else config.seed
        own = [self.row, self.purpose, self.seed, self.fold, config.folds, folds_seed]
        return digest([FORMAT, fingerprint, model, own, changed_settings(self.student)])


def changed_settings(student: StudentSettings) -> dict[str, Any]:
    """Return the settings that decide a result and differ from the defaults."""
    changed = student.model_dump(mode="json", exclude_defaults=True, exclude={"model": True, "train": {"workers"}})
    # The extractor is written in full: without its defaults it would lose its kind, and mlp would look like gat.
    return changed | {"extractor": student.extractor.model_dump(mode="json")}


def trials(row: StudyRow, config: StudyConfig) -> list[StudentSettings]:
    """Return the row's trials: the first `tuning.trials` combinations of the settings that have an effect on it.

    The first trial takes the first of every list of values, the second one the second, and so on. All rows try the
    same learning rates and epochs in the same order, and rows with the same settings to tune get the same trials.

    Raises:
        UserError: there are fewer combinations than trials, so that the row would be tuned less than others.
    """
    base, tuning = student_of(row, config.student), config.tuning
    shared = _diagonals(_choices("learning_rate", tuning.learning_rate), _choices("epochs", tuning.epochs))
    own = _choices("teacher_weight", tuning.teacher_weight) if row.tunes else [{}]
    if "alignment_weight" in (row.tunes or ()) and base.alignment == "mse":
        own = _diagonals(own, _choices("normalise", tuning.normalise))
    combinations = _diagonals(shared, own)
    if len(combinations) < tuning.trials:
        raise UserError(
            f"tuning.trials: {tuning.trials} is more than the {len(combinations)} combinations of "
            f"{', '.join(combinations[0])} that row {row.name} has. Lower it or add values, so that every row gets "
            "the same number of trials."
        )
    return [_with_values(base, row, values) for values in combinations[: tuning.trials]]


def _choices(name: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    return [{name: value} for value in values]


def _diagonals(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return every combination of both lists, one diagonal of their grid after another.

    The first few combinations therefore have different values in both: they try every learning rate, for instance,
    before one comes again.
    """
    size = len(first)
    return [first[i % size] | second[(i // size + i % size) % len(second)] for i in range(size * len(second))]


def _with_values(base: StudentSettings, row: StudyRow, values: dict[str, Any]) -> StudentSettings:
    train = base.train.model_copy(update={name: values[name] for name in ("learning_rate", "epochs")})
    changes: dict[str, Any] = {"train": train}
    changes |= {name: values["teacher_weight"] for name in row.tunes or ()}
    if "normalise" in values:
        changes["normalise_targets"] = values["normalise"]
    return base.model_copy(update=changes)


def trial_runs(data: str, row: StudyRow, config: StudyConfig) -> list[Run]:
    """Return the row's trials as runs, all with the first seed and on the first fold."""
    return [Run(data, row.name, "trial", student, config.seeds[0], 0) for student in trials(row, config)]


def final_runs(data: str, row: StudyRow, student: StudentSettings, config: StudyConfig) -> list[Run]:
    """Return the runs with the chosen settings: every seed on every fold."""
    places = product(config.seeds, range(config.folds))
    return [Run(data, row.name, "final", student, seed, fold) for seed, fold in places]
