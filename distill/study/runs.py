"""Which runs a study consists of, as data: trials on dev, then the chosen trial over folds and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice, product
from typing import Any, Literal

import numpy as np

from cluster.base.errors import UserError
from cluster.base.stage_folder import digest
from distill.config import StudentSettings
from distill.study.arms import StudyRow, student_of
from distill.study.config import StudyConfig

# Part of every key. Raise it when the training changes what a run comes to, or a setting gets another default:
# keys hold only what differs from defaults, so that a new setting does not make old records worthless.
FORMAT = 2


Combination = tuple[Any, ...]


@dataclass(frozen=True)
class Run:
    """One training of one row on one data set. A trial is judged on dev alone, a final run on its fold's test too."""

    data: str
    row: str
    purpose: Literal["trial", "final"]
    student: StudentSettings
    seed: int
    fold: int

    def key(self, config: StudyConfig, fingerprint: str, model: str) -> str:
        """Return the digest of all that decides the run.

        Args:
            fingerprint: of the data set's content.
            model: fingerprint of the starting encoder, whose path may differ between machines.
        """
        deal = None if config.folds == 1 else config.seed
        own = [self.row, self.purpose, self.seed, self.fold, config.folds, deal]
        return digest([FORMAT, fingerprint, model, own, described(self.student)])


def described(student: StudentSettings) -> dict[str, Any]:
    """Return what of the settings differs from the defaults and decides a result."""
    told = student.model_dump(mode="json", exclude_defaults=True, exclude={"model": True, "train": {"workers"}})
    # Whole: an extractor with its own defaults would lose its kind, and mlp could not be told from gat.
    return told | {"extractor": student.extractor.model_dump(mode="json")}


def trials(row: StudyRow, config: StudyConfig) -> list[StudentSettings]:
    """Return the row's trials: `tuning.trials` combinations of what has an effect on it, as unlike as may be.

    The learning rates and epochs are the same for all rows, in the same order, so that none is tried at fewer of
    them; what a row has besides is varied within. Rows with the same knobs get the same combinations.

    Raises:
        UserError: there are fewer combinations than trials, so that the row would be tuned less than others.
    """
    base, tuning = student_of(row, config.student), config.tuning
    shared: dict[str, Sequence[Any]] = {"learning_rate": tuning.learning_rate, "epochs": tuning.epochs}
    own: dict[str, Sequence[Any]] = {"teacher_weight": tuning.teacher_weight} if row.tunes else {}
    if "alignment_weight" in (row.tunes or ()) and base.alignment == "mse":
        own["normalise"] = tuning.normalise
    knobs = shared | own
    combinations = _shuffled(list(product(*knobs.values())), config.seed)
    if len(combinations) < tuning.trials:
        raise UserError(
            f"tuning.trials: {tuning.trials} is more than the {len(combinations)} combinations of "
            f"{', '.join(knobs)} that row {row.name} has. Lower it or add values, so that every row gets as many."
        )
    chosen: list[Combination] = []
    for begun in islice(cycle(_spread(_shuffled(list(product(*shared.values())), config.seed))), tuning.trials):
        left = [one for one in combinations if one not in chosen]
        chosen.append(_unlike([one for one in left if one[: len(shared)] == begun] or left, chosen))
    return [_turned(base, row, dict(zip(knobs, values, strict=True))) for values in chosen]


def _shuffled(combinations: list[Combination], seed: int) -> list[Combination]:
    return [combinations[i] for i in np.random.default_rng(seed).permutation(len(combinations))]


def _spread(combinations: list[Combination]) -> list[Combination]:
    """Return all combinations, each the one that is most unlike those before it.

    Few trials drawn at random may all have the same learning rate; these try every value before one comes twice.
    """
    chosen: list[Combination] = []
    while rest := [one for one in combinations if one not in chosen]:
        chosen.append(_unlike(rest, chosen))
    return chosen


def _unlike(combinations: Sequence[Combination], chosen: Sequence[Combination]) -> Combination:
    """Return the one that differs in most settings from the chosen ones (from the nearest of them)."""

    def apart(one: Combination) -> tuple[int, int]:
        differing = [sum(a != b for a, b in zip(one, other, strict=True)) for other in chosen]
        return min(differing, default=0), sum(differing)

    return max(combinations, key=apart)


def _turned(base: StudentSettings, row: StudyRow, values: dict[str, Any]) -> StudentSettings:
    train = base.train.model_copy(update={name: values[name] for name in ("learning_rate", "epochs")})
    changes: dict[str, Any] = {"train": train}
    changes |= {name: values["teacher_weight"] for name in row.tunes or ()}
    if "normalise" in values:
        changes["normalise_targets"] = values["normalise"]
    return base.model_copy(update=changes)


def trial_runs(data: str, row: StudyRow, config: StudyConfig) -> list[Run]:
    """Return the row's trials as runs: the first seed, trained on the first fold's training pairs."""
    return [Run(data, row.name, "trial", student, config.seeds[0], 0) for student in trials(row, config)]


def final_runs(data: str, row: StudyRow, student: StudentSettings, config: StudyConfig) -> list[Run]:
    """Return the runs of the chosen settings: every seed on every fold."""
    places = product(config.seeds, range(config.folds))
    return [Run(data, row.name, "final", student, seed, fold) for seed, fold in places]
