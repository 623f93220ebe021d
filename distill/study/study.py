"""A study: every row is tuned alike on dev, and then trained on every data set for each fold and seed.

The rows that build on the best LRKD row come last. That row is chosen on dev, never on test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cluster.base.errors import UserError
from cluster.base.progress import progress
from cluster.models.folders import check_model
from distill.config import StudentSettings
from distill.study.arms import StudyRow, based_on, load_rows
from distill.study.config import StudyConfig, StudyWorkers
from distill.study.data import StudyData, open_data, reopen_data
from distill.study.records import Record, Records
from distill.study.runs import Run, changed_settings, final_runs, trial_runs
from mpcot.config import PerspectiveSettings


@dataclass(frozen=True)
class FinishedRow:
    """A row of one data set whose runs are complete: its trials, the chosen settings and its final runs."""

    row: StudyRow
    student: StudentSettings
    trials: list[Record]
    finals: list[Record]

    def on_dev(self, metric: str) -> float:
        """Return the mean of a figure on dev over folds and seeds, by which rows are chosen."""
        return float(np.mean([record["dev"][metric] for record in self.finals]))


def run_study(config: StudyConfig, make: bool = True) -> tuple[list[StudyData], dict[str, list[FinishedRow]]]:
    """Make all runs that are missing, on the connected Ray, and return the finished rows by data set.

    Args:
        make: False makes no runs and reads no run folder: all runs must be in the records.

    Raises:
        UserError: a run folder is not finished, a setting does not fit, or runs failed. Finished runs are kept.
    """
    data = [(open_data if make else reopen_data)(one, config) for one in config.data]
    study = Study(config, {one.name: one for one in data}, make)
    own = {one.name: one.rows for one in config.data}
    rows = {one.name: load_rows(config, one.pairs.perspectives, own[one.name], one.pairs.unlabelled) for one in data}
    done = study.finish({name: [row for row in found if not row.of_best] for name, found in rows.items()})
    best = {name: best_candidate(found, config).row for name, found in done.items()}
    last = {name: [based_on(row, best[name]) for row in found if row.of_best] for name, found in rows.items()}
    controls = study.finish(last)
    return data, {name: done[name] + controls[name] for name in done}


def best_candidate(rows: Sequence[FinishedRow], config: StudyConfig) -> FinishedRow:
    """Return the LRKD row with the best mean on dev."""
    candidates = [row for row in rows if row.row.role == "candidate"]
    return max(candidates, key=lambda row: row.on_dev(config.tuning.choose_by))


@dataclass(frozen=True)
class Study:
    """A study at work: its settings, its data sets, and the records that it reads and adds to."""

    config: StudyConfig
    data: dict[str, StudyData]
    make: bool

    @cached_property
    def records(self) -> Records:
        return Records(self.config.records)

    def finish(self, rows: dict[str, list[StudyRow]]) -> dict[str, list[FinishedRow]]:
        """Tune the rows of every data set, make their final runs, and return the finished rows."""
        trials = {(name, row.name): trial_runs(name, row, self.config) for name, own in rows.items() for row in own}
        self.make_missing([run for runs in trials.values() for run in runs], "trials")
        finals = {
            (name, row.name): final_runs(name, row, self._best_trial(trials[name, row.name]).student, self.config)
            for name, own in rows.items()
            for row in own
        }
        self.make_missing([run for runs in finals.values() for run in runs], "runs")

        def finished(name: str, row: StudyRow) -> FinishedRow:
            tried, final = trials[name, row.name], finals[name, row.name]
            return FinishedRow(row, final[0].student, list(map(self._record, tried)), list(map(self._record, final)))

        return {name: [finished(name, row) for row in own] for name, own in rows.items()}

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
        with progress(f"study {label}", unit="run", total=len(runs)) as bar:
            done = len(runs) - len(missing)
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
            **result,
        }
        if "predicted" in result:
            tested = self.data[run.data].pairs.tested
            kept["predicted"] = " ".join(result["predicted"][p["id"]] for p in tested if p["fold"] == run.fold)
        self.records.add(run.data, run.row, kept)

    def _best_trial(self, runs: Sequence[Run]) -> Run:
        """Return the best trial on dev; among equals, the one with the lower loss on labels."""

        def merit(run: Run) -> tuple[float, float]:
            dev = self._record(run)["dev"]
            return dev[self.config.tuning.choose_by], -dev["ce"]

        return max(runs, key=merit)

    def _record(self, run: Run) -> Record:
        return self.records.of(run.data, run.row)[self._key(run)]

    def _key(self, run: Run) -> str:
        pairs = self.data[run.data].pairs
        return run.key(self.config, pairs.fingerprint, pairs.model)

    def _job(self, run: Run) -> Any:
        from distill.study.train import Job

        data, config = self.data[run.data], self.config
        assert data.run is not None, "runs need the run folder"
        model = check_model("student.model", run.student.model)
        return Job(
            run=data.run,
            labels=data.labels,
            perspectives=PerspectiveSettings(names=data.pairs.perspectives),
            student=run.student.model_copy(update={"model": model}),
            seed=run.seed,
            fold=run.fold,
            folds=config.folds,
            folds_seed=config.seed,
            hidden_labels=data.pairs.hidden_labels,
            test=run.purpose == "final",
            threads=config.workers.cpus_per_run,
            gpus=config.workers.gpus_per_run,
        )


def execute(jobs: Sequence[Any], workers: StudyWorkers) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Make runs as Ray tasks; as each one ends, yield its number and its result, or the error's text if it failed."""
    import ray

    from distill.study.train import run_one

    task = ray.remote(num_cpus=workers.cpus_per_run, num_gpus=workers.gpus_per_run, max_retries=2)(run_one)
    waiting = {task.remote(job): place for place, job in enumerate(jobs)}
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        place = waiting.pop(done)
        try:
            result = ray.get(done)
        except ray.exceptions.RayError as error:
            result = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        yield place, result
