"""A student behind a queue: admission, deadline, batches, cache and figures around a scorer. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from serve.config import ServeSettings
from serve.experiments.config import ARM_HEADER
from serve.http.metrics import Metrics
from serve.http.refusals import Refusal
from serve.http.schemas import Asker, Examples, ModelInfo, Result, ScoreInput, ScoreResponse
from serve.replica.model_thread import ModelThread, Pace
from serve.scoring.batching import Batcher
from serve.scoring.score_cache import ScoreCache
from serve.scoring.scorer import Answered, Scorer, prove

CLOSE_POLL_S = 0.05
FAILED_BATCHES = 3  # after so many in a row, the model is tried with a pair of our own
# A batch that takes so long, and so many times the deadline of a request, will never end.
HUNG_S, HUNG_DEADLINES = 30.0, 3

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Job:
    """One request's share of a batch and when it came; its length is the number of its products."""

    request: ScoreInput
    came: float = field(default_factory=time.perf_counter)

    def __len__(self) -> int:
        return len(self.request.products)


class QueuedStudent:
    """Scores requests in batches on a thread that it may share with other models of the replica.

    Args:
        thread: the one that `scorer` was loaded on. The event loop stays free to refuse requests.
        metrics: where to count; several models of one replica share them.
    """

    def __init__(self, scorer: Scorer, settings: ServeSettings, thread: ModelThread, metrics: Metrics | None = None):
        self.scorer, self.settings, self.thread, self.model = scorer, settings, thread, scorer.name
        self.metrics = metrics or Metrics()
        self.figures = self.metrics.of_model(scorer.name)
        self.cache = ScoreCache(scorer.reads, settings.cache, self.figures) if settings.cache.max_pairs else None
        batch = settings.batch
        self.batcher: Batcher[Job, list[Result]] = Batcher(
            self._answer, batch.max_batch_pairs, batch.batch_wait_ms / 1000
        )
        self.pace = Pace(settings.longest_wait_s / batch.max_batch_pairs)
        self.metrics.watch_waiting(self.waiting)
        if scorer.drift:
            self.metrics.drifts.windows.append(scorer.drift)
        thread.queues.append(self.queued_s)
        self.failed, self.running, self.began = 0, 0, math.inf

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

    def queued_s(self) -> float:
        """Return the predicted seconds of what this model computes now and of what waits for it."""
        now = self.pace.seconds_for(self.running) - max(0.0, time.perf_counter() - self.began)
        return max(0.0, now) + self.pace.seconds_for(sum(map(len, self.batcher.waiting.values())))

    def ready(self) -> bool:
        """Say whether the model is loaded and right; a queue that is full for a moment makes nothing unready."""
        return self.wrong() is None

    def hasty(self) -> Refusal | None:
        """Return the refusal of any request whatever it asks for, or None where one might be answered in time.

        With a cache that is only known once the request has been read.
        """
        return None if self.cache else self.full(0)

    def full(self, pairs: int) -> Refusal | None:
        """Return the refusal of a request with so many pairs that came now, or None where it can be in time.

        A request waits for its batch for up to `longest_wait_s`, and the batch takes as long at most, unless it is this
        request alone. One that finds the model idle is accepted whatever is predicted, so that a pace which was
        measured in a bad moment is measured again.
        """
        ahead, bound, deadline = self.thread.ahead_s(), self.settings.longest_wait_s, self.settings.request_timeout_s
        over = max(ahead - bound, ahead + self.pace.seconds_for(pairs) - deadline)
        if not ahead or over <= 0:
            return None
        detail = (
            f"what waits already takes about {ahead:.1f} s, too long for request_timeout_s = {deadline:g}: try again or"
            " send fewer products"
        )
        return Refusal(503, "Overloaded", detail, "request_timeout_s", math.ceil(over), kind="overloaded")

    def wrong(self) -> str | None:
        """Return what is wrong with the model, where only a new process helps; None while it works.

        Such a model hangs, or it fails batch after batch and on a pair of our own too, as after an error of its GPU.
        """
        hung = time.perf_counter() - self.began
        if hung > max(HUNG_S, HUNG_DEADLINES * self.settings.request_timeout_s):
            return f"the model has spent {hung:.0f} s in one batch"
        return f"the model failed {self.failed} times in a row" if self.failed > FAILED_BATCHES else None

    async def score(self, request: ScoreInput, asker: Asker | None = None) -> ScoreResponse:
        """Score one request as part of a batch. Who asks makes no difference, but a named arm is not here.

        Raises:
            Refusal: 422 where an explanation is asked of an export without an index, or where the asker names an arm;
                503 where too much waits or the deadline has passed.
            ArithmeticError: the model gives it a probability that is not a number.
        """
        if asker and asker.headers.get(ARM_HEADER):
            raise Refusal(422, "No such arm", f"{ARM_HEADER}: this service runs no experiment, so it has no arms")
        if request.explain and self.scorer.explainer is None:
            why = "this export carries no rationale index, so there is nothing to explain with"
            raise Refusal(422, "No explanations", why)
        if self.cache is None:
            results = await self._scored(request)
        else:
            found = self.cache.look_up(request)
            results = found.complete(await self._scored(found.rest) if found.rest else [])
        self.figures.pairs.inc(len(results))
        return ScoreResponse(model=self.model, results=results)

    async def _scored(self, request: ScoreInput) -> list[Result]:
        """Let the model score the request, in a batch with others."""
        if full := self.full(len(request.products)):
            raise full
        waited = self.settings.request_timeout_s
        try:
            # Not wait_for: it starts a task, and until that runs a burst would find the queue as empty as before.
            async with asyncio.timeout(waited):
                return await self.batcher.submit(Job(request))
        except TimeoutError as error:
            detail = f"no result within request_timeout_s = {waited:g}: try again or send fewer products"
            retry_s = max(1, math.ceil(self.thread.ahead_s()))
            raise Refusal(503, "Too slow", detail, "request_timeout_s", retry_s) from error

    async def close(self) -> None:
        """Wait for the model, then let go of it; nothing may be asked afterwards."""
        while self.waiting() or self.batcher.busy:  # it may also be busy with what nobody waits for any more
            await asyncio.sleep(CLOSE_POLL_S)
        self.forget()
        self.batcher.close()
        self.thread.shutdown(wait=False)

    def forget(self) -> None:
        """Take the queue and the drift out of the figures, and the queue out of what is predicted."""
        self.metrics.forget_waiting(self.waiting)
        if self.scorer.drift:
            self.metrics.drifts.forget(self.scorer.drift)
        self.thread.queues.remove(self.queued_s)

    async def _answer(self, jobs: Sequence[Job]) -> list[Answered]:
        """Score all pairs of `jobs` at once, and return one answer per job."""
        self.running, wrong = sum(map(len, jobs)), True
        self.figures.batch_pairs.observe(self.running)
        try:
            answers = await self._run(self._work, jobs)
            wrong = any(isinstance(answer, Exception) for answer in answers)
            return answers
        finally:
            self.running = 0
            await self._count(wrong)

    def _work(self, jobs: Sequence[Job]) -> list[Answered]:
        """Score on the model's thread, which may have been busy with another model until now."""
        started = self.began = time.perf_counter()
        for job in jobs:
            self.figures.queue_seconds.observe(started - job.came)
        try:
            answers = self.scorer.answer([job.request for job in jobs])
            self.pace.measured(sum(map(len, jobs)), time.perf_counter() - started)
            self.metrics.drifts.tell_ray()
            return answers
        finally:
            self.began = math.inf
            self.figures.model_seconds.observe(time.perf_counter() - started)

    async def _count(self, wrong: bool) -> None:
        """Bound the next batch; count those that failed in a row, and after several look if the model is right."""
        self.batcher.max_size = self.pace.pairs_in(self.settings.longest_wait_s, self.settings.batch.max_batch_pairs)
        self.failed = self.failed + 1 if wrong else 0
        if self.failed >= FAILED_BATCHES:
            await self._prove()

    async def _prove(self) -> None:
        """Try the model with a pair of our own, because the fault may lie in what was asked."""
        try:
            await self._run(prove, self.scorer)
            self.failed = 0
        except Exception:
            self.failed += 1

    async def _run(self, work: Callable[..., Answer], *given: Any) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work, *given)
