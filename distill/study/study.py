"""A study: what rows share is tuned once on dev, then every row is trained for each fold and seed.

Nothing is ever chosen on test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from cluster.base.errors import UserError
from cluster.base.progress import progress
from cluster.models.folders import model_to_load
from distill.config import LEAST_SKILL, StudentSettings
from distill.study.arms import Role, Rows, StudyRow, load_rows, primary_rows, student_of
from distill.study.config import Comparison, DataSet, StudyConfig
from distill.study.data import StudyData, open_data, reopen_data
from distill.study.execute import execute
from distill.study.probabilities import packed
from distill.study.records import Record, Records
from distill.study.row_checks import check_rows
from distill.study.runs import (
    Run,
    changed_settings,
    final_runs,
    read_by,
    trial_runs,
    trials_of_training,
    trials_of_weight,
    with_training_of,
)
from mpcot.config import PerspectiveSettings

SKILL = "alignment_skill"
LOWER_IS_BETTER = frozenset({"log_loss"})

Place = tuple[str, str]  # a data set and a row


@dataclass(frozen=True)
class FinishedRow:
    """A row of one data set whose runs are complete: its trials, the chosen settings and its final runs."""

    row: StudyRow
    student: StudentSettings
    trials: list[Record]
    finals: list[Record]

    def on_dev(self, figure: str) -> float | None:
        """Return the mean of a figure on dev over folds and seeds; None where a run has no such figure."""
        values = [record["dev"].get(figure) for record in self.finals]
        return None if None in values else float(np.mean(values))


def run_study(config: StudyConfig, make: bool = True) -> tuple[list[StudyData], dict[str, list[FinishedRow]]]:
    """Make all runs that are missing, on the connected Ray, and return the finished rows by data set.

    Args:
        make: False makes no runs and reads no run folder: all runs must be in the records.

    Raises:
        UserError: a run folder is not finished, a setting does not fit, or runs failed. Finished runs are kept.
    """
    data = [(open_data if make else reopen_data)(one, config) for one in config.data]
    own = {one.name: one.rows for one in config.data}
    rows = {one.name: load_rows(config, one.pairs.perspectives, own[one.name], one.pairs.unlabelled) for one in data}
    for one in data:
        check_rows(one, rows[one.name], config)
    return data, Study(config, {one.name: one for one in data}, rows, make).finish()


def primary_of(data: DataSet, config: StudyConfig) -> Comparison | None:
    """Return the primary test of a data set; one that hides something has none unless it names its own."""
    return data.primary or (None if data.hides else config.primary)


def best_candidate(rows: Sequence[FinishedRow], config: StudyConfig) -> FinishedRow:
    """Return the LRKD row with the best mean on dev."""
    by = config.tuning.choose_by
    return max((row for row in rows if row.row.role == "candidate"), key=lambda row: merit(row.on_dev(by), by))


def merit(value: float | None, figure: str) -> float:
    """Return a number that is higher for a better figure, and lowest for one that is missing."""
    if value is None:
        return -np.inf
    return -value if figure in LOWER_IS_BETTER else value


@dataclass
class Study:
    """A study at work: its settings, its data sets with their rows, and the records that it reads and adds to.

    `tried` holds the trials of every data set and row.
    """

    config: StudyConfig
    data: dict[str, StudyData]
    rows: dict[str, Rows]
    make: bool
    tried: dict[Place, list[Run]] = field(default_factory=dict)

    @cached_property
    def records(self) -> Records:
        return Records(self.config.records)

    def finish(self) -> dict[str, list[FinishedRow]]:
        """Tune what rows share and lambda, make the final runs, and return the finished rows."""
        chosen = self._settled()
        finals = {
            (name, row.name): final_runs(name, row, chosen[name, row.name], self.config, self._seeds(name, row))
            for name, row in self._places()
        }
        self.make_missing([run for runs in finals.values() for run in runs], "runs")

        def finished(name: str, row: StudyRow) -> FinishedRow:
            tried, final = ([*map(self._record, runs.get((name, row.name), []))] for runs in (self.tried, finals))
            return FinishedRow(row, chosen[name, row.name], tried, final)

        return {name: [finished(name, row) for row in own] for name, own in self.rows.items()}

    def _places(self) -> list[tuple[str, StudyRow]]:
        return [(name, row) for name, own in self.rows.items() for row in own]

    def _seeds(self, name: str, row: StudyRow) -> tuple[int, ...]:
        data = next(one for one in self.config.data if one.name == name)
        if data.seeds:
            return data.seeds
        first = row.name in primary_rows(self.rows[name], primary_of(data, self.config))
        return self.config.primary_seeds if first and self.config.primary_seeds else self.config.seeds

    def _settled(self) -> dict[Place, StudentSettings]:
        """Return the settings of every row's final runs: shared ones first, then the KL weight, then lambda.

        A data set that hides something takes the settings of the one of the same run that hides nothing, if there is
        one, so that the points of a learning curve differ in nothing else.
        """
        tuning, whole = self.config.tuning, self._whole()
        places = [(name, row) for name, row in self._places() if name not in whole]
        found = {(name, row.name): student_of(row, self.config.student) for name, row in places}
        shared = self._first("baseline", places)
        best = self._chosen({place: trials_of_training(found[place], tuning) for place in shared.values()})
        found = {place: with_training_of(student, best[shared[place[0]]]) for place, student in found.items()}

        shared = self._first("soft_labels", places)
        weight = "soft_label_weight"
        best = self._chosen({place: trials_of_weight(found[place], weight, tuning) for place in shared.values()})
        taken = [(name, row) for name, row in places if weight in row.weights]
        _set(found, weight, {(name, row.name): best[shared[name]] for name, row in taken})

        weight = "alignment_weight"
        aligned = [(name, row) for name, row in places if weight in row.weights]
        own = [(name, row.name) for name, row in aligned if row.of is None]
        best = self._chosen({place: trials_of_weight(found[place], weight, tuning) for place in own}, True)
        _set(found, weight, {(name, row.name): best[name, row.of or row.name] for name, row in aligned})
        return found | {(name, row.name): found[whole[name], row.name] for name in whole for row in self.rows[name]}

    def _whole(self) -> dict[str, str]:
        """Return for each data set that hides something the one of the same run that hides nothing, if there is one.

        Raises:
            UserError: that one lacks a row.
        """
        all_of = {one.run: one.name for one in self.config.data if not one.hides}
        found = {one.name: all_of[one.run] for one in self.config.data if one.hides and one.run in all_of}
        for name, whole in found.items():
            known = {row.name for row in self.rows[whole]}
            if lacking := [row.name for row in self.rows[name] if row.name not in known]:
                raise UserError(
                    f"data.{name}.rows: {lacking[0]!r} is not a row of {whole!r}, whose settings it takes. Add it "
                    "there, or leave it out here."
                )
        return found

    def _first(self, role: Role, places: Sequence[tuple[str, StudyRow]]) -> dict[str, Place]:
        """Return the row of a role by data set, where there is one."""
        return {name: (name, row.name) for name, row in reversed(places) if row.role == role}

    def _chosen(
        self, students: Mapping[Place, list[StudentSettings]], learnt: bool = False
    ) -> dict[Place, StudentSettings]:
        """Return the best of some settings on dev for each place. Settings without a rival need no trial.

        Args:
            learnt: choose among those that learnt the rationales; where none did, what came nearest to it.
        """
        rows = {(name, row.name): row for name, row in self._places()}
        runs = {
            place: trial_runs(place[0], rows[place], given, self.config)
            for place, given in students.items()
            if len(given) > 1
        }
        self.make_missing([run for made in runs.values() for run in made], "trials")
        by = self.config.tuning.choose_by

        def order(run: Run) -> list[float]:
            dev = self._record(run)["dev"]
            skill = [min(merit(dev.get(SKILL), SKILL), LEAST_SKILL)] if learnt else []
            return [*skill, merit(dev.get(by), by)]

        for place, made in runs.items():
            self.tried.setdefault(place, []).extend(made)
        return {p: max(runs[p], key=order).student if p in runs else given[0] for p, given in students.items()}

    def make_missing(self, runs: Sequence[Run], label: str) -> None:
        """Make the runs that are not in the records.

        Raises:
            UserError: some failed, or some are missing and none may be made.
        """
        missing = [run for run in runs if self._key(run) not in self.records.of(run.data, run.row)]
        if not missing:
            return
        if not self.make:
            raise UserError(f"records: {len(missing)} of {len(runs)} {label} are missing. Run without --tables.")
        failed: list[str] = []
        done = len(runs) - len(missing)
        with progress(f"study {label}", unit="run", total=len(runs), done=done) as bar:
            bar.update(done)
            for place, result in execute([self._job(run) for run in missing], self.config.workers):
                run = missing[place]
                if isinstance(result, str):
                    failed.append(f"{run.data}, {run.row}, seed {run.seed}, fold {run.fold}: {result}")
                    continue
                self._keep(run, result)
                done += 1
                bar.update(done, dev=float(result["dev"][self.config.tuning.choose_by]))
        if failed:
            raise UserError(f"{len(failed)} of {len(missing)} {label} failed; the others are kept. First: {failed[0]}")

    def _keep(self, run: Run, result: dict[str, Any]) -> None:
        kept = {
            "key": self._key(run),
            **{name: getattr(run, name) for name in ("row", "purpose", "seed", "fold")},
            "student": changed_settings(run.student),
            **read_by(run.reading),
            **result,
        }
        if "probabilities" in result:
            tested = self.data[run.data].pairs.tested
            own = [result["probabilities"][pair["id"]] for pair in tested if pair["fold"] == run.fold]
            kept["probabilities"] = packed(np.array(own))
        self.records.add(run.data, run.row, kept)

    def _record(self, run: Run) -> Record:
        return self.records.of(run.data, run.row)[self._key(run)]

    def _key(self, run: Run) -> str:
        pairs = self.data[run.data].pairs
        return run.key(self.config, pairs.fingerprint, pairs.model)

    def _job(self, run: Run) -> Any:
        from distill.study.job import Job

        data, config = self.data[run.data], self.config
        assert data.run is not None, "runs need the run folder"
        model = model_to_load("student.model", run.student.model)
        return Job(
            run=data.run,
            labels=data.labels,
            perspectives=PerspectiveSettings(names=data.pairs.perspectives),
            student=run.student.model_copy(update={"model": model}),
            reading=run.reading,
            seed=run.seed,
            fold=run.fold,
            folds=config.folds,
            folds_seed=config.seed,
            hidden_labels=data.pairs.hidden_labels,
            hidden_unlabelled=data.pairs.hidden_unlabelled,
            kept_together=data.pairs.kept_together,
            test=run.purpose == "final",
            threads=config.workers.cpus_per_run,
            gpus=config.workers.gpus_per_run,
        )


def _set(found: dict[Place, StudentSettings], weight: str, chosen: Mapping[Place, StudentSettings]) -> None:
    """Give the weight of the chosen settings to the rows that take it."""
    for place, best in chosen.items():
        found[place] = found[place].model_copy(update={weight: getattr(best, weight)})
