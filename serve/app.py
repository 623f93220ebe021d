"""The Ray Serve deployment: one replica holds one student and batches across requests.

Admission, deadline and refusals happen inside the replica, not in Serve's proxy: every refusal is
a problem document, and no request pays for a hop to a second deployment.
"""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig

from serve.api import Examples, ModelInfo, Result, ScoreInput, ScoreResponse
from serve.config import ServeSettings
from serve.http import make_api
from serve.problems import Problem
from serve.scorer import Scorer

APP_NAME = "broadfast"


@dataclass(frozen=True)
class Job:
    """One request's share of a batch."""

    request: ScoreInput

    def __len__(self) -> int:
        return len(self.request.products)


def pairs_in(jobs: list[Job]) -> int:
    """Size of a batch as Serve's batcher should count it: in pairs, not in requests."""
    return sum(len(job) for job in jobs)


class StudentDeployment:
    """Holds the scorer; scores requests in batches on a thread of its own."""

    def __init__(self, export_dir: str, settings: ServeSettings):
        self.settings = settings
        # One thread: torch works in parallel inside a call, and the event loop stays free to refuse requests.
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self.scorer = self.thread.submit(Scorer.load, Path(export_dir), settings).result()
        self.model = self.scorer.name
        self.held = self.scoring = 0
        batcher: Any = self.batched  # Serve adds the setters to the method
        batcher.set_max_batch_size(settings.batch.max_batch_pairs)
        batcher.set_batch_wait_timeout_s(settings.batch.batch_wait_ms / 1000)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_api(self, self.settings.limits)

    def ready(self) -> bool:
        """Whether the queue has room."""
        return self.waiting < max(1, self.settings.max_queued_requests)

    @property
    def about(self) -> ModelInfo:
        """What the model can do."""
        return self.scorer.about

    def examples(self, query: str, count: int) -> Examples:
        """Queries and titles of the export's index; none where it carries none."""
        explainer = self.scorer.explainer
        return explainer.examples(query, count) if explainer else Examples(queries=[], titles=[])

    @property
    def waiting(self) -> int:
        """Requests held that are not in the model yet."""
        return self.held - self.scoring

    async def score(self, request: ScoreInput) -> ScoreResponse:
        """Score one request as part of a batch.

        Raises:
            Problem: 422 where an explanation is asked of an export without one; 503 where the queue
                is full or the deadline has passed.
        """
        self._admit(request)
        self.held += 1
        try:
            waited = self.settings.request_timeout_s
            results = await asyncio.wait_for(self.batched(Job(request)), waited)
        except TimeoutError as error:
            detail = f"no result within request_timeout_s = {waited:g}: try again or send fewer products"
            raise Problem(503, "Too slow", detail, "request_timeout_s", math.ceil(waited)) from error
        finally:
            self.held -= 1
        return ScoreResponse(model=self.model, results=results)

    def _admit(self, request: ScoreInput) -> None:
        if request.explain and self.scorer.explainer is None:
            raise Problem(422, "No explanations", "this export carries no rationale index: leave out `explain`")
        # A request that finds the model idle is not queued, so it is taken whatever the bound.
        if self.held and self.waiting >= self.settings.max_queued_requests:
            detail = f"max_queued_requests = {self.settings.max_queued_requests} requests wait already: try again"
            raise Problem(503, "The queue is full", detail, "max_queued_requests", 1)

    @ray_serve.batch(max_batch_size=256, batch_wait_timeout_s=0.002, batch_size_fn=pairs_in)
    async def batched(self, jobs: list[Job]) -> list[list[Result]]:
        """Score all pairs of `jobs` at once; one list of results per job."""
        self.scoring += len(jobs)
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.thread, self.scorer.answer, [job.request for job in jobs])
        finally:
            self.scoring -= len(jobs)


def build_app(export_dir: Path, settings: ServeSettings) -> Application:
    """Return the Serve application for one export folder."""
    deployment: Any = ray_serve.deployment(
        ray_serve.ingress()(StudentDeployment),
        name="student",
        max_ongoing_requests=settings.max_ongoing_requests,
        graceful_shutdown_timeout_s=settings.drain_s,
        logging_config=LoggingConfig(enable_access_log=settings.access_log),
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.replicas.min,
            max_replicas=settings.replicas.max,
            target_ongoing_requests=settings.replicas.target_ongoing,
        ),
    )
    return deployment.bind(str(export_dir), settings)
