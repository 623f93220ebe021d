"""A service that deals its askers to arms and records which arm answered whom. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

from serve.config import ServeSettings
from serve.experiments.assign import assign, shadows
from serve.experiments.config import ARM_HEADER, Arm, ExperimentSettings
from serve.experiments.exposures import ExposureLog
from serve.http.refusals import Refusal
from serve.http.schemas import Asker, Examples, ModelInfo, ScoreInput, ScoreResponse
from serve.replica.compatible import check_compatible
from serve.replica.replica import QueuedStudent
from serve.scoring.scorer import check_export, load_proven

log = logging.getLogger("ray.serve.experiment")


class ExperimentService:
    """The arm of the asker's unit answers; shadow arms score the same request afterwards, if nobody waits meanwhile.

    A request without a unit is answered by `default`, and one that names an arm itself by that arm, also by a shadow.
    Neither is recorded: nobody was dealt.

    Args:
        default: answers those who are in no arm; the figures and the examples are its own.
        arms: the student that answers for each arm, by the arm's name.
    """

    def __init__(
        self,
        default: QueuedStudent,
        arms: Mapping[str, QueuedStudent],
        experiment: ExperimentSettings,
        exposures: ExposureLog,
    ) -> None:
        self.default, self.arms, self.experiment, self.exposures = default, arms, experiment, exposures
        self.model, self.metrics = default.model, default.metrics
        self.in_shadow: set[asyncio.Task[None]] = set()
        self.metrics.watch_exposures(lambda: len(exposures.waiting))

    @property
    def models(self) -> list[ModelInfo]:
        """The model of `default`, then those of the arms, each once and with the arms that it answers for."""
        return [
            model.model_copy(update={"arms": [name for name, other in self.arms.items() if other is student]})
            for student in self._students
            for model in student.models
        ]

    def examples(self, query: str, count: int) -> Examples:
        """Return queries and titles of the index of `default`."""
        return self.default.examples(query, count)

    def ready(self) -> bool:
        """Say whether the models of all arms that answer are right; a shadow arm does not matter."""
        return self.wrong() is None

    def wrong(self) -> str | None:
        """Return what is wrong with the model of an arm that answers, if anything is."""
        return next(filter(None, (student.wrong() for student in self._answering)), None)

    def hasty(self) -> Refusal | None:
        """Return the refusal of any request whatever it asks for, or None where an arm might answer one in time."""
        found = [student.hasty() for student in self._answering]
        return found[0] if all(found) else None

    @property
    def _answering(self) -> list[QueuedStudent]:
        silent = {arm.name for arm in shadows(self.experiment)}
        return [self.default, *(student for name, student in self.arms.items() if name not in silent)]

    @property
    def _students(self) -> list[QueuedStudent]:
        return list({id(student): student for student in (self.default, *self.arms.values())}.values())

    async def score(self, request: ScoreInput, asker: Asker | None = None) -> ScoreResponse:
        """Score with the arm that the asker names, or else with that of the asker's unit.

        Raises:
            Refusal: 422 where there is no arm of that name, or the arm refuses the request, which is then no exposure.
        """
        if asker and (named := asker.headers.get(ARM_HEADER)):
            if named not in self.arms:
                detail = f"{ARM_HEADER} {named!r}: the arms are {', '.join(self.arms)}"
                raise Refusal(422, "No such arm", detail)
            return await self.arms[named].score(request)
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
        """Wait for the shadow arms, and let go of the students; the log of exposures goes on with the next service."""
        await asyncio.gather(*self.in_shadow, return_exceptions=True)
        for student in self._students:
            await student.close()

    async def _shadow(self, request: ScoreInput, asker: Asker, unit: str, arm: Arm) -> None:
        response = None
        if not any(student.waiting() for student in self._answering):  # all arms share the model's thread
            try:  # nobody waits for this answer
                response = await self.arms[arm.name].score(request.model_copy(update={"explain": False}))
            except Refusal:
                pass
            except Exception:
                log.exception("the shadow arm %s failed", arm.name)
        if response:
            self._note(asker, unit, arm, response)
        else:
            self.metrics.shadow_skipped(arm.name)

    def _note(self, asker: Asker, unit: str, arm: Arm, response: ScoreResponse) -> None:
        ids, scores = [result.id for result in response.results], [result.score for result in response.results]
        self.metrics.scored_by(arm.name, response.model, arm.shadow)
        self.exposures.append(asker.request_id, unit, arm, ids, scores, response.model)


def start_experiment(
    default: QueuedStudent, export_dir: Path, settings: ServeSettings, exposures: ExposureLog
) -> ExperimentService:
    """Load the arms' students beside that of `default`, once for each export. Call it on the scorer's thread.

    Raises:
        UserError: an arm's export is not one, its answers cannot be right or are not like those of `default`.
    """
    experiment = settings.experiment
    assert experiment is not None, "no experiment is set"
    loaded = {export_dir.resolve(): default}
    try:
        for folder in (Path(arm.export).resolve() for arm in experiment.arms):
            if folder not in loaded:
                scorer = load_proven(folder, settings)
                if not experiment.allow_change:
                    check_compatible(default.scorer.about, scorer.about, "set serve.experiment.allow_change = true")
                loaded[folder] = QueuedStudent(scorer, settings, default.thread, default.metrics)
        arms = {arm.name: loaded[Path(arm.export).resolve()] for arm in experiment.arms}
        return ExperimentService(default, arms, experiment, exposures)
    except BaseException:
        for service in loaded.values():  # otherwise the figures would hold on to the students of a failed roll
            if service is not default:
                service.forget()
        raise


def check_exports(export_dir: Path, settings: ServeSettings) -> None:
    """Refuse what is not an export folder, those of the arms included, before anything is loaded or started.

    Raises:
        UserError: a folder does not exist or holds no student.
    """
    check_export(export_dir)
    for arm in settings.experiment.arms if settings.experiment else ():
        check_export(Path(arm.export))
