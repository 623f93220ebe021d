"""Admission, deadline and batches over a scripted model: full queues, gone clients, late answers, full batches."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from serve.http.refusals import Refusal
from serve.replica import replica
from serve.replica.replica import FAILED_BATCHES
from serve.scoring.batching import Batcher
from tests.helpers.scripted_model import Held, ask, behind_a_busy_model, figures, queued, started


@pytest.fixture
def scorer():
    return Held()


def test_what_waits_while_the_model_works_is_scored_together(scorer):
    async def run():
        service = queued(scorer)
        tasks = await behind_a_busy_model(service, scorer, ask("a", "b"), ask("c"), ask("d", "e"), ask("f"))
        scorer.go.set()
        return [[r.id for r in (await task).results] for task in tasks], figures(service)

    answers, seen = asyncio.run(run())
    assert answers == [["first"], ["a", "b"], ["c"], ["d", "e"], ["f"]]
    assert scorer.batches == [["first"], ["a", "b", "c"], ["d", "e", "f"]], "in order, within four pairs"
    assert (seen["broadfast_pairs_total"], seen["broadfast_batch_pairs_sum"]) == (7, 7)
    assert (seen["broadfast_batch_pairs_count"], seen["broadfast_model_seconds_count"]) == (3, 3)
    assert (seen["broadfast_queue_seconds_count"], seen["broadfast_waiting_requests"]) == (5, 0)


def test_a_cancelled_request_leaves_the_queue_and_its_place(scorer):
    async def run():
        service = queued(scorer)
        held, gone, stays = await behind_a_busy_model(service, scorer, ask("gone"), ask("stays"))
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert len(service.batcher.waiting) == 1, "its place is free at once"
        scorer.go.set()
        await asyncio.gather(held, stays)

    asyncio.run(run())
    assert scorer.batches == [["first"], ["stays"]]


def test_a_request_past_its_deadline_is_refused_and_never_scored(scorer):
    async def run():
        service = queued(scorer, request_timeout_s=0.5)
        tasks = await behind_a_busy_model(service, scorer, ask("late"))
        found = await asyncio.gather(*tasks, return_exceptions=True)
        scorer.go.set()
        while service.batcher.busy:
            await asyncio.sleep(0.01)
        service.settings = service.settings.model_copy(update={"request_timeout_s": 30})
        return found, (await service.score(ask("next"))).results[0].id

    found, after = asyncio.run(run())
    assert [(p.status, p.limit, p.kind, p.headers["Retry-After"]) for p in found] == [
        (503, "request_timeout_s", "request_timeout_s", "1")
    ] * 2
    assert after == "next" and scorer.batches == [["first"], ["next"]]


def test_a_fault_hits_its_batch_only(scorer):
    async def run():
        service = queued(scorer)
        tasks = await behind_a_busy_model(service, scorer, ask("broken", "x", "y"), ask("a", "b"))
        scorer.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, broken, other = asyncio.run(run())
    assert isinstance(broken, RuntimeError)
    assert [first.results[0].id, other.results[0].id] == ["first", "a"]


def test_a_batch_that_is_not_full_waits_for_company():
    batches = []

    async def answer(jobs):
        batches.append(jobs)
        return jobs

    async def run():
        batcher = Batcher(answer, max_size=3, wait_s=1)
        first = asyncio.create_task(batcher.submit("a"))
        await asyncio.sleep(0.01)
        return await asyncio.gather(first, batcher.submit("b"), batcher.submit("long one"))

    assert asyncio.run(run()) == ["a", "b", "long one"]
    assert batches == [["a", "b"], ["long one"]], "a job above the bound goes alone"


class Failing(Held):
    """A scorer that fails on what it is asked, and on a pair of ours only while `broken`."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.broken = broken
        self.go.set()

    def score(self, pairs):
        if self.broken:
            raise RuntimeError("an illegal memory access")
        return SimpleNamespace(right=np.array([True]))


@pytest.mark.parametrize("broken", [True, False])
def test_a_model_that_fails_batch_after_batch_is_wrong_unless_it_scores_a_pair_of_ours(broken):
    """What a client asks must not make Ray Serve replace a sound replica."""

    async def run():
        service = queued(Failing(broken))
        for _ in range(FAILED_BATCHES + 1):
            with pytest.raises(RuntimeError, match="a fault in the model"):
                await service.score(ask("broken"))
        wrong = service.wrong()
        await service.close()
        return wrong

    said = asyncio.run(run())
    assert ("in a row" in said) if broken else said is None


def test_a_model_that_hangs_is_wrong(scorer, monkeypatch):
    monkeypatch.setattr(replica, "HUNG_S", 0.0)

    async def run():
        service = queued(scorer, request_timeout_s=0.5)
        assert service.wrong() is None
        task = asyncio.create_task(service.score(ask("first")))
        await started(scorer)
        with pytest.raises(Refusal, match="request_timeout_s"):
            await task
        while (wrong := service.wrong()) is None:
            await asyncio.sleep(0.01)
        scorer.go.set()
        await service.close()
        return wrong, service.wrong()

    hung, after = asyncio.run(run())
    assert "in one batch" in hung and after is None
