"""A service that deals its askers to arms, and keeps who saw which. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from serve.config import ServeSettings
from serve.experiments.assign import assign, shadows
from serve.experiments.config import Arm, ExperimentSettings
from serve.experiments.exposures import ExposureLog
from serve.http.refusals import Problem
from serve.http.schemas import Asker, Examples, ModelInfo, ScoreInput, ScoreResponse
from serve.replica.replica import StudentService
from serve.scoring.scorer import check_export, load_proven


class ExperimentService:
    """Answers by the arm of the asker's unit; shadow arms score the same request once it is answered, if nobody waits.

    Who sends no unit is answered by `default`, and is no exposure.

    Args:
        default: answers whoever is in no arm; queue, figures and what else the API asks of a service are its own.
        arms: who answers for each arm, by name.
    """

    def __init__(
        self,
        default: StudentService,
        arms: Mapping[str, StudentService],
        experiment: ExperimentSettings,
        exposures: ExposureLog,
    ) -> None:
        self.default, self.arms, self.experiment, self.exposures = default, arms, experiment, exposures
        self.model, self.metrics = default.model, default.metrics
        self.in_shadow: set[asyncio.Task[None]] = set()
        self.metrics.watch_exposures(lambda: len(exposures.waiting), lambda: exposures.lost)

    @property
    def models(self) -> list[ModelInfo]:
        """The model of `default`, then those of the arms, each once."""
        students = {id(student): student for student in (self.default, *self.arms.values())}
        return [model for student in students.values() for model in student.models]

    def examples(self, query: str, count: int) -> Examples:
        """Queries and titles of the index of `default`."""
        return self.default.examples(query, count)

    def ready(self) -> bool:
        """Whether the queue of every arm that answers has room; a full shadow takes nothing from anybody."""
        return all(student.ready() for student in self._answering)

    def wrong(self) -> str | None:
        """What is wrong with the model of an arm that answers, if anything."""
        return next(filter(None, (student.wrong() for student in self._answering)), None)

    def full(self) -> Problem | None:
        """The refusal of a request that no arm would take."""
        found = [student.full() for student in self._answering]
        return found[0] if all(found) else None

    @property
    def _answering(self) -> list[StudentService]:
        silent = {arm.name for arm in shadows(self.experiment)}
        return [self.default, *(student for name, student in self.arms.items() if name not in silent)]

    async def exposition(self) -> str:
        """The figures of all arms, which count together."""
        return await self.default.exposition()

    async def score(self, request: ScoreInput, asker: Asker | None = None) -> ScoreResponse:
        """Score by the arm of the asker's unit.

        Raises:
            Problem: the arm refuses; that is no exposure.
        """
        unit = asker.headers.get(self.experiment.unit_header) if asker else None
        if asker is None or not unit:
            return await self.default.score(request)
        arm = assign(self.experiment, unit)
        response = await self.arms[arm.name].score(request)
        self._note(asker, unit, arm, response)
        for shadow in shadows(self.experiment):
            task = asyncio.create_task(self._shadow(request, asker, unit, shadow))
            self.in_shadow.add(task)
            task.add_done_callback(self.in_shadow.discard)
        return response

    async def close(self) -> None:
        """Wait for the shadows, write the exposures that wait, and let go of the students.

        Raises:
            UserError: they cannot be written.
        """
        await asyncio.gather(*self.in_shadow, return_exceptions=True)
        try:
            await asyncio.to_thread(self.exposures.close)
        finally:
            for student in {id(student): student for student in (self.default, *self.arms.values())}.values():
                await student.close()

    async def _shadow(self, request: ScoreInput, asker: Asker, unit: str, arm: Arm) -> None:
        if any(student.waiting() for student in self._answering):  # all arms share the model's thread
            self.metrics.shadow_refused()
            return
        try:
            response = await self.arms[arm.name].score(request.model_copy(update={"explain": False}))
        except Problem:  # nobody waits for it: a full queue is for those who are waited for
            self.metrics.shadow_refused()
            return
        self._note(asker, unit, arm, response)

    def _note(self, asker: Asker, unit: str, arm: Arm, response: ScoreResponse) -> None:
        ids, scores = [result.id for result in response.results], [result.score for result in response.results]
        self.exposures.append(asker.request_id, unit, arm, ids, scores)


def start_experiment(default: StudentService, export_dir: Path, settings: ServeSettings) -> ExperimentService:
    """Load the arms' students beside that of `default`, once for each export. To be called on the scorer's thread.

    Raises:
        UserError: an arm's export is none or answers what cannot be right, or exposures cannot be written.
    """
    experiment = settings.experiment
    assert experiment is not None, "no experiment is set"
    loaded = {export_dir.resolve(): default}
    try:
        for folder in (Path(arm.export).resolve() for arm in experiment.arms):
            if folder not in loaded:
                scorer = load_proven(folder, settings)
                loaded[folder] = StudentService(scorer, settings, default.thread, default.metrics)
        arms = {arm.name: loaded[Path(arm.export).resolve()] for arm in experiment.arms}
        return ExperimentService(default, arms, experiment, ExposureLog(experiment.folder, experiment))
    except BaseException:
        for service in loaded.values():  # or the replica's figures would hold on to the students of a failed roll
            if service is not default:
                default.metrics.forget_waiting(service.waiting)
        raise


def check_exports(export_dir: Path, settings: ServeSettings) -> None:
    """Refuse what is not an export folder, the arms' among them, before anything is loaded or started.

    Raises:
        UserError: no folder, or not a student's.
    """
    check_export(export_dir)
    for arm in settings.experiment.arms if settings.experiment else ():
        check_export(Path(arm.export))
