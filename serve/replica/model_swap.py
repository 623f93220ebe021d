"""A replica's student can be exchanged for that of another export while it answers. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path

from serve.config import ServeSettings
from serve.experiments.config import ARM_HEADER, ExperimentSettings
from serve.experiments.experiment_service import ExperimentService, start_experiment
from serve.experiments.exposures import ExposureLog
from serve.http.metrics import Metrics
from serve.http.refusals import Refusal
from serve.http.schemas import Asker, Examples, ModelInfo, ScoreInput, ScoreResponse
from serve.replica.compatible import check_compatible
from serve.replica.model_thread import ModelThread
from serve.replica.replica import CLOSE_POLL_S, QueuedStudent
from serve.scoring.scorer import load_proven
from serve.watching.answer_log import AnswerLog


class Loaded:
    """The service over one export, and how many requests it has accepted and not answered yet."""

    def __init__(self, export_dir: Path, service: QueuedStudent | ExperimentService) -> None:
        self.export_dir, self.service, self.asked = export_dir, service, 0

    async def close(self) -> None:
        """Answer what was accepted, then let go of the student."""
        while self.asked:
            await asyncio.sleep(CLOSE_POLL_S)
        await self.service.close()


class SwappingService:
    """Answers with the export that was loaded last; the one before it finishes what it has accepted.

    It can answer nothing before the first `load`.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics | None = None) -> None:
        self.settings, self.metrics = settings, metrics or Metrics()
        self.loaded: Loaded | None = None
        self.exposures: ExposureLog | None = None
        self.answers: AnswerLog | None = None
        self.leaving: set[asyncio.Task[None]] = set()

    async def load(self, export_dir: Path, allow_change: bool = False) -> None:
        """Load an export beside the one that answers, try it out, and answer with it from then on.

        Args:
            allow_change: also where its labels or perspectives are others, or where it lacks verdicts or an index.

        Raises:
            UserError: it is not an export, its answers cannot be right, or they are not like those of the one before
                it; then that one stays.
        """
        if self.answers is None and self.settings.answer_log:
            self.answers = AnswerLog(self.settings.answer_log, self.metrics.answers_lost.inc)
        thread = ModelThread()
        loop = asyncio.get_running_loop()
        student: QueuedStudent | None = None
        try:
            scorer = await loop.run_in_executor(thread, load_proven, export_dir, self.settings)
            if self.loaded and not allow_change:
                check_compatible(self.models[0], scorer.about, "roll it in with --allow-change")
            service: QueuedStudent | ExperimentService
            service = student = QueuedStudent(scorer, self.settings, thread, self.metrics)
            if self.settings.experiment:
                log = self._exposure_log(self.settings.experiment)
                service = await loop.run_in_executor(thread, start_experiment, student, export_dir, self.settings, log)
        except BaseException:
            if student:
                await student.close()  # otherwise the figures would hold on to it
            thread.shutdown(wait=False)
            raise
        before, self.loaded = self.loaded, Loaded(export_dir, service)
        if before:
            task = asyncio.create_task(before.close())
            self.leaving.add(task)
            task.add_done_callback(self.leaving.discard)

    def _exposure_log(self, experiment: ExperimentSettings) -> ExposureLog:
        """Return the one log of exposures: one that cannot write now keeps its rows whichever export answers."""
        if self.exposures is None:
            self.exposures = ExposureLog(experiment.folder, experiment, self.metrics.exposures_lost.inc)
        return self.exposures

    @property
    def current(self) -> Loaded:
        """The export that answers now."""
        assert self.loaded is not None, "nothing is loaded yet"
        return self.loaded

    @property
    def models(self) -> list[ModelInfo]:
        """The models that can answer now."""
        return self.current.service.models

    def examples(self, query: str, count: int) -> Examples:
        """Return queries and titles of its index."""
        return self.current.service.examples(query, count)

    def ready(self) -> bool:
        """Say whether a model is loaded, and right."""
        return self.loaded is not None and self.loaded.service.ready()

    def wrong(self) -> str | None:
        """Return what is wrong with the model that answers, where only a new replica helps."""
        return self.loaded.service.wrong() if self.loaded else None

    def hasty(self) -> Refusal | None:
        """Return the refusal of any request whatever it asks for, or None where one might be answered in time."""
        return self.current.service.hasty()

    async def score(self, request: ScoreInput, asker: Asker | None = None) -> ScoreResponse:
        """Score with the export that is current when the request comes, and keep the answer if that is set and drawn.

        Raises:
            Refusal: the student refuses the request.
        """
        taken = self.current
        taken.asked += 1
        try:
            response = await taken.service.score(request, asker)
            if self.answers and asker and not asker.headers.get(ARM_HEADER):  # no shopper names an arm
                self.answers.note(request, asker.request_id, response)
            return response
        finally:
            taken.asked -= 1

    async def close(self) -> None:
        """Answer what was accepted, write the exposures and answers that wait, and let go of everything.

        Raises:
            UserError: exposures or answers cannot be written.
        """
        await asyncio.gather(*self.leaving)
        if self.loaded:
            await self.loaded.close()
        try:
            if self.answers:
                await asyncio.to_thread(self.answers.close)
        finally:
            if self.exposures:
                await asyncio.to_thread(self.exposures.close)
