"""The study: for every data set and row the same tuning on dev, then folds x seeds, then tables.

Rows that build on the best LRKD row come last: which one that is, is chosen on dev, never on test.
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
from distill.study.runs import Run, described, final_runs, trial_runs
from mpcot.config import PerspectiveSettings


@dataclass(frozen=True)
class Finished:
    """A row of one data set whose runs are all there: its trials, the settings chosen, its final runs."""

    row: StudyRow
    student: StudentSettings
    trials: list[Record]
    finals: list[Record]

    def on_dev(self, metric: str) -> float:
        """Return the mean of a dev figure over folds and seeds: what rows are chosen by."""
        return float(np.mean([record["dev"][metric] for record in self.finals]))


def run_study(config: StudyConfig, make: bool = True) -> tuple[list[StudyData], dict[str, list[Finished]]]:
    """Make every run that is missing, on the connected Ray, and return all of them by data set.

    Args:
        make: false makes none and reads no run folder: all must be in the records.

    Raises:
        UserError: a run folder is not finished, a setting does not fit, or runs failed; what finished is kept.
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


def best_candidate(rows: Sequence[Finished], config: StudyConfig) -> Finished:
    """Return the LRKD row with the best mean on dev."""
    candidates = [row for row in rows if row.row.role == "candidate"]
    return max(candidates, key=lambda row: row.on_dev(config.tuning.choose_by))


@dataclass(frozen=True)
class Study:
    """A study while it runs: what is made, and where it is kept."""

    config: StudyConfig
    data: dict[str, StudyData]
    make: bool

    @cached_property
    def records(self) -> Records:
        return Records(self.config.records)

    def finish(self, rows: dict[str, list[StudyRow]]) -> dict[str, list[Finished]]:
        """Tune the rows of every data set, then make their final runs."""
        trials = {(name, row.name): trial_runs(name, row, self.config) for name, own in rows.items() for row in own}
        self.require([run for runs in trials.values() for run in runs], "trials")
        finals = {}
        for name, own in rows.items():
            for row in own:
                chosen = self._chosen(trials[name, row.name])
                finals[name, row.name] = final_runs(name, row, chosen.student, self.config)
        self.require([run for runs in finals.values() for run in runs], "runs")
        return {
            name: [self._finished(row, trials[name, row.name], finals[name, row.name]) for row in own]
            for name, own in rows.items()
        }

    def record(self, run: Run) -> Record | None:
        """Return what is kept of a run."""
        return self.records.find(run.data, run.row, self._key(run))

    def require(self, runs: Sequence[Run], label: str) -> None:
        """Make the runs that are not in the records.

        Raises:
            UserError: some failed, or some are missing and none may be made.
        """
        missing = [run for run in runs if self.record(run) is None]
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
            raise UserError(f"{len(failed)} of {len(missing)} {label} failed; the others are kept. {failed[0]}")

    def _keep(self, run: Run, result: dict[str, Any]) -> None:
        kept = {
            "key": self._key(run),
            **{name: getattr(run, name) for name in ("row", "purpose", "seed", "fold")},
            "student": described(run.student),
            **result,
        }
        if "predicted" in result:
            pairs = self.data[run.data].pairs
            ids = pairs.column("ids")
            kept["predicted"] = " ".join(result["predicted"][ids[i]] for i in pairs.rows_of(run.fold))
        self.records.add(run.data, run.row, kept)

    def _chosen(self, runs: Sequence[Run]) -> Run:
        """Return the best trial on dev; of equals the one of the lower loss on labels."""

        def merit(run: Run) -> tuple[float, float]:
            dev = self._found(run)["dev"]
            return dev[self.config.tuning.choose_by], -dev["ce"]

        return max(runs, key=merit)

    def _finished(self, row: StudyRow, trials: Sequence[Run], finals: Sequence[Run]) -> Finished:
        return Finished(row, finals[0].student, [self._found(t) for t in trials], [self._found(f) for f in finals])

    def _found(self, run: Run) -> Record:
        record = self.record(run)
        assert record is not None, "asked for a run that was not required"
        return record

    def _key(self, run: Run) -> str:
        pairs = self.data[run.data].pairs
        return run.key(self.config, pairs.fingerprint, pairs.model)

    def _job(self, run: Run) -> Any:
        from distill.study.train import Job

        data, config = self.data[run.data], self.config
        assert data.run is not None, "a data set of records alone makes no runs"
        model = check_model("student.model", run.student.model)
        return Job(
            run=data.run,
            labels=data.labels,
            perspectives=PerspectiveSettings(names=data.pairs.perspectives),
            student=run.student.model_copy(update={"model": model}),
            seed=run.seed,
            fold=run.fold,
            folds=config.folds,
            deal_seed=config.seed,
            hidden_labels=data.pairs.hidden_labels,
            test=run.purpose == "final",
            threads=config.workers.cpus_per_run,
            gpus=config.workers.gpus_per_run,
        )


def execute(jobs: Sequence[Any], workers: StudyWorkers) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Make runs as Ray tasks and yield each one's place and result as it ends; of a failed one, what it said."""
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
