"""A student behind a queue: admission, deadline, batches, cache and figures around a scorer. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from serve.config import ServeSettings
from serve.http.metrics import Metrics
from serve.http.refusals import Refusal
from serve.http.schemas import Asker, Examples, ModelInfo, Result, ScoreInput, ScoreResponse
from serve.scoring.batching import Batcher
from serve.scoring.score_cache import ScoreCache
from serve.scoring.scorer import Scorer, prove

CLOSE_POLL_S = 0.05
FAILED_BATCHES = 3  # after so many in a row, the model is tried with a pair of our own
HUNG_DEADLINES = 3  # a batch that takes this many times the deadline of a request will never end

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Job:
    """One request's share of a batch and when it came; its length is the number of its products."""

    request: ScoreInput
    came: float = field(default_factory=time.perf_counter)

    def __len__(self) -> int:
        return len(self.request.products)


class QueuedStudent:
    """Scores requests in batches on a thread of its own.

    Args:
        thread: the one that `scorer` was loaded on. Torch works in parallel inside a call, and the event loop stays
            free to refuse requests.
        metrics: where to count; several models of one replica share them.
    """

    def __init__(
        self, scorer: Scorer, settings: ServeSettings, thread: ThreadPoolExecutor, metrics: Metrics | None = None
    ):
        self.scorer, self.settings, self.thread, self.model = scorer, settings, thread, scorer.name
        self.metrics = metrics or Metrics()
        cached = settings.cache.max_pairs > 0
        self.answer = ScoreCache(scorer.answer, settings.cache, self.metrics) if cached else scorer.answer
        batch = settings.batch
        self.batcher = Batcher(self._answer, batch.max_batch_pairs, batch.batch_wait_ms / 1000)
        self.metrics.watch_waiting(self.waiting)
        self.failed, self.began = 0, math.inf

    @property
    def models(self) -> list[ModelInfo]:
        """The one model that can answer."""
        return [self.scorer.about]

    def examples(self, query: str, count: int) -> Examples:
        """Return queries and titles of the export's index; both are empty where the export carries none."""
        explainer = self.scorer.explainer
        return explainer.examples(query, count) if explainer else Examples(queries=[], titles=[])

    def waiting(self) -> int:
        """Return how many requests wait for the model."""
        return len(self.batcher.waiting)

    def ready(self) -> bool:
        """Say whether a request would be accepted now."""
        return self.full() is None

    def full(self) -> Refusal | None:
        """Return the refusal of any request that came now, or None where there is room."""
        waiting = self.waiting()
        # A request that finds the model idle does not queue, so it is accepted whatever the bound.
        if not (waiting or self.batcher.busy) or waiting < self.settings.max_queued_requests:
            return None
        detail = f"max_queued_requests = {self.settings.max_queued_requests} requests wait already: try again"
        return Refusal(503, "The queue is full", detail, "max_queued_requests", 1)

    def wrong(self) -> str | None:
        """Return what is wrong with the model, where only a new process helps; None while it works.

        Such a model hangs, or it fails batch after batch and on a pair of our own too, as after an error of its GPU.
        """
        hung = time.perf_counter() - self.began
        if hung > HUNG_DEADLINES * self.settings.request_timeout_s:
            return f"the model has spent {hung:.0f} s in one batch"
        return f"the model failed {self.failed} times in a row" if self.failed > FAILED_BATCHES else None

    async def score(self, request: ScoreInput, asker: Asker | None = None) -> ScoreResponse:
        """Score one request as part of a batch; who asks makes no difference here.

        Raises:
            Refusal: 422 where an explanation is asked of an export without an index; 503 where the queue is full or
                the deadline has passed.
        """
        if request.explain and self.scorer.explainer is None:
            why = "this export carries no rationale index, so there is nothing to explain with"
            raise Refusal(422, "No explanations", why)
        if full := self.full():
            raise full
        waited = self.settings.request_timeout_s
        try:
            results = await asyncio.wait_for(self.batcher.submit(Job(request)), waited)
        except TimeoutError as error:
            detail = f"no result within request_timeout_s = {waited:g}: try again or send fewer products"
            raise Refusal(503, "Too slow", detail, "request_timeout_s", math.ceil(waited)) from error
        self.metrics.pairs.inc(len(results))
        return ScoreResponse(model=self.model, results=results)

    async def close(self) -> None:
        """Wait for the model, then let go of it; nothing may be asked afterwards."""
        while self.waiting() or self.batcher.busy:  # it may also be busy with what nobody waits for any more
            await asyncio.sleep(CLOSE_POLL_S)
        self.metrics.forget_waiting(self.waiting)
        self.batcher.close()
        self.thread.shutdown(wait=False)

    async def _answer(self, jobs: Sequence[Job]) -> list[list[Result]]:
        """Score all pairs of `jobs` at once, and return one list of results per job."""
        started = time.perf_counter()
        for job in jobs:
            self.metrics.queue_seconds.observe(started - job.came)
        self.metrics.batch_pairs.observe(sum(map(len, jobs)))
        self.began = started
        try:
            with self.metrics.model_seconds.time():
                answers = await self._run(self.answer, [job.request for job in jobs])
            self.failed = 0
            return answers
        except Exception:
            self.failed += 1
            if self.failed >= FAILED_BATCHES:
                await self._prove()
            raise
        finally:
            self.began = math.inf

    async def _prove(self) -> None:
        """Try the model with a pair of our own, because the fault may lie in what was asked."""
        try:
            await self._run(prove, self.scorer)
            self.failed = 0
        except Exception:
            self.failed += 1

    async def _run(self, work: Callable[..., Answer], *given: Any) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work, *given)
