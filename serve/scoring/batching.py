"""Batches across requests: whatever waits while the model works is scored together next.

Ray Serve's own batcher cuts batches by the clock even while the model is busy, so under load they are only as large as
what arrives within its wait. This one cuts a batch when the model is free to take it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sized
from typing import Any, Generic, TypeVar

Job = TypeVar("Job", bound=Sized)
Answer = TypeVar("Answer")


class Batcher(Generic[Job, Answer]):
    """Hands jobs to `run`, one batch at a time, in the order of arrival. Belongs to one event loop.

    Args:
        run: answers a batch, one answer per job; an answer that is an exception is raised to who waits for it.
        max_size: bound on the sum of the jobs' lengths; a longer job is a batch of its own.
        wait_s: how long a batch that is not full waits for more jobs when the model is free.
    """

    def __init__(self, run: Callable[[list[Job]], Awaitable[list[Any]]], max_size: int, wait_s: float) -> None:
        self.run, self.max_size, self.wait_s = run, max_size, wait_s
        self.waiting: dict[asyncio.Future[Answer], Job] = {}
        self.busy = False
        self.arrived = asyncio.Event()
        self.worker: asyncio.Task[None] | None = None

    async def submit(self, job: Job) -> Answer:
        """Return the job's answer, or raise what its batch raised. A cancelled job leaves the queue."""
        if self.worker is None:
            self.worker = asyncio.create_task(self._work())
        future = asyncio.get_running_loop().create_future()
        self.waiting[future] = job
        self.arrived.set()
        try:
            return await future
        finally:
            self.waiting.pop(future, None)

    def close(self) -> None:
        """End the task that cuts batches; no job may wait now or be submitted later."""
        assert not self.waiting and not self.busy, "a batch would be lost"
        if self.worker:
            self.worker.cancel()

    async def _work(self) -> None:
        while True:
            await self.arrived.wait()
            # Only the first batch after a pause waits: the jobs of later ones arrived while the model worked.
            if self.wait_s and sum(map(len, self.waiting.values())) < self.max_size:
                await asyncio.sleep(self.wait_s)
            while self.waiting:
                await self._answer(self._take())
            self.arrived.clear()

    def _take(self) -> dict[asyncio.Future[Answer], Job]:
        """Take jobs from the front of the queue as long as they fit, but at least one."""
        batch: dict[asyncio.Future[Answer], Job] = {}
        size = 0
        for future, job in list(self.waiting.items()):
            size += len(job)
            if batch and size > self.max_size:
                break
            batch[future] = self.waiting.pop(future)
        return batch

    async def _answer(self, batch: dict[asyncio.Future[Answer], Job]) -> None:
        self.busy = True
        try:
            answers = await self.run(list(batch.values()))
            for future, answer in zip(batch, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        except Exception as error:
            for future in batch:
                if not future.done():
                    future.set_exception(error)
        finally:
            self.busy = False
