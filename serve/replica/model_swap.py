"""A replica's student that can be exchanged for that of another export while it answers. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serve.config import ServeSettings
from serve.experiments.experiment_service import ExperimentService, start_experiment
from serve.http.metrics import Metrics
from serve.http.refusals import Problem
from serve.http.schemas import Asker, Examples, ModelInfo, ScoreInput, ScoreResponse
from serve.replica.replica import CLOSE_POLL_S, StudentService
from serve.scoring.scorer import load_proven


class Loaded:
    """The service over one export, and how many requests it has taken and not answered yet."""

    def __init__(self, export_dir: Path, service: StudentService | ExperimentService) -> None:
        self.export_dir, self.service, self.asked = export_dir, service, 0

    async def close(self) -> None:
        """Answer what was taken, then let go of the student."""
        while self.asked:
            await asyncio.sleep(CLOSE_POLL_S)
        await self.service.close()


class SwappingService:
    """Answers by the export that was loaded last; the one before it finishes what it has taken.

    Nothing can be asked of it before the first `load`.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics | None = None) -> None:
        self.settings, self.metrics = settings, metrics or Metrics()
        self.loaded: Loaded | None = None
        self.leaving: set[asyncio.Task[None]] = set()

    async def load(self, export_dir: Path) -> None:
        """Load an export beside the one that answers, try it out, and let it answer from then on.

        Raises:
            UserError: it is not an export, or what it answers cannot be right; the one before it stays.
        """
        thread = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        loop = asyncio.get_running_loop()
        try:
            scorer = await loop.run_in_executor(thread, load_proven, export_dir, self.settings)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        service: StudentService | ExperimentService
        service = student = StudentService(scorer, self.settings, thread, self.metrics)
        if self.settings.experiment:
            try:
                service = await loop.run_in_executor(thread, start_experiment, student, export_dir, self.settings)
            except BaseException:
                await student.close()  # or the figures would hold on to it
                raise
        before, self.loaded = self.loaded, Loaded(export_dir, service)
        if before:
            task = asyncio.create_task(before.close())
            self.leaving.add(task)
            task.add_done_callback(self.leaving.discard)

    @property
    def current(self) -> Loaded:
        """What answers now."""
        assert self.loaded is not None, "nothing is loaded yet"
        return self.loaded

    @property
    def model(self) -> str:
        """The name of the model that answers now."""
        return self.current.service.model

    @property
    def models(self) -> list[ModelInfo]:
        """What can answer now."""
        return self.current.service.models

    def examples(self, query: str, count: int) -> Examples:
        """Queries and titles of its index."""
        return self.current.service.examples(query, count)

    def ready(self) -> bool:
        """Whether a request would be taken now."""
        return self.loaded is not None and self.loaded.service.ready()

    def wrong(self) -> str | None:
        """What is wrong with the model that answers, so that only another replica can mend it."""
        return self.loaded.service.wrong() if self.loaded else None

    def full(self) -> Problem | None:
        """The refusal of a request that came now."""
        return self.current.service.full()

    async def exposition(self) -> str:
        """The figures of this replica, whatever it has loaded."""
        return self.metrics.text()

    async def score(self, request: ScoreInput, asker: Asker | None = None) -> ScoreResponse:
        """Score by the export that is current when the request comes.

        Raises:
            Problem: it refuses.
        """
        taken = self.current
        taken.asked += 1
        try:
            return await taken.service.score(request, asker)
        finally:
            taken.asked -= 1

    async def close(self) -> None:
        """Answer what was taken, and let go of everything."""
        await asyncio.gather(*self.leaving)
        if self.loaded:
            await self.loaded.close()
