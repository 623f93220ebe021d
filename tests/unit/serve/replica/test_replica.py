"""Admission, deadline and batches over a scripted model: full queues, gone clients, late answers, full batches."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.config import BatchSettings, CacheSettings, LimitSettings, ServeSettings
from serve.http.refusals import Refusal
from serve.http.schemas import ProductInput, Result, ScoreInput
from serve.replica.replica import FAILED_BATCHES, QueuedStudent
from serve.scoring.batching import Batcher
from serve.scoring.score_cache import key_of


class Held:
    """A scorer that answers when it is let go, and remembers every batch's titles."""

    name, explainer = "held", None

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()
        self.started = threading.Semaphore(0)

    def answer(self, requests):
        self.batches.append([product.title for r in requests for product in r.products])
        self.started.release()
        assert self.go.wait(300), "nobody let the model go"
        if any("broken" in title for title in self.batches[-1]):
            raise RuntimeError("a fault in the model")
        return [
            [Result(id=p.id, label="E", score=len(p.title), probabilities={}, perspectives={}) for p in r.products]
            for r in requests
        ]


@pytest.fixture
def scorer():
    return Held()


def make(scorer, **settings):
    batch = BatchSettings(max_batch_pairs=4, batch_wait_ms=0)
    given = {"batch": batch, "limits": LimitSettings(products_per_request=4), **settings}
    return QueuedStudent(scorer, ServeSettings(**given), ThreadPoolExecutor(1))


def ask(*titles, explain=False):
    products = [ProductInput(id=title, title=title) for title in titles]
    return ScoreInput(query="q", products=products, explain=explain)


async def started(scorer):
    """Wait until the model has taken a batch."""
    await asyncio.to_thread(scorer.started.acquire)


def figures(service):
    """Samples by name and, where one has it, kind or path."""
    families = text_string_to_metric_families(service.metrics.text())
    return {sample.name: sample.value for family in families for sample in family.samples}


async def behind_a_busy_model(service, scorer, *waiting):
    """Start a request that the model holds, then those that wait; return their tasks once all of them do."""
    tasks = [asyncio.create_task(service.score(ask("first")))]
    await started(scorer)
    tasks += [asyncio.create_task(service.score(request)) for request in waiting]
    while len(service.batcher.waiting) < len(waiting):
        await asyncio.sleep(0)
    return tasks


def test_what_waits_while_the_model_works_is_scored_together(scorer):
    async def run():
        service = make(scorer)
        tasks = await behind_a_busy_model(service, scorer, ask("a", "b"), ask("c"), ask("d", "e"), ask("f"))
        scorer.go.set()
        return [[r.id for r in (await task).results] for task in tasks], figures(service)

    answers, seen = asyncio.run(run())
    assert answers == [["first"], ["a", "b"], ["c"], ["d", "e"], ["f"]]
    assert scorer.batches == [["first"], ["a", "b", "c"], ["d", "e", "f"]], "in order, within four pairs"
    assert (seen["broadfast_pairs_total"], seen["broadfast_batch_pairs_sum"]) == (7, 7)
    assert (seen["broadfast_batch_pairs_count"], seen["broadfast_model_seconds_count"]) == (3, 3)
    assert (seen["broadfast_queue_seconds_count"], seen["broadfast_waiting_requests"]) == (5, 0)


def test_a_full_queue_refuses_at_once_and_takes_again(scorer):
    async def run():
        service = make(scorer, max_queued_requests=1)
        tasks = await behind_a_busy_model(service, scorer, ask("a"))
        assert not service.ready()
        with pytest.raises(Refusal) as refused:
            await service.score(ask("b"))
        scorer.go.set()
        await asyncio.gather(*tasks)
        assert service.ready() and (await service.score(ask("c"))).results[0].id == "c"
        return refused.value

    refused = asyncio.run(run())
    assert (refused.status, refused.limit, refused.headers) == (503, "max_queued_requests", {"Retry-After": "1"})


def test_without_a_queue_an_idle_model_still_takes_a_request(scorer):
    async def run():
        service = make(scorer, max_queued_requests=0)
        (held,) = await behind_a_busy_model(service, scorer)
        with pytest.raises(Refusal):
            await service.score(ask("b"))
        scorer.go.set()
        await held

    asyncio.run(run())


def test_a_cancelled_request_leaves_the_queue_and_its_place(scorer):
    async def run():
        service = make(scorer, max_queued_requests=2)
        held, gone, stays = await behind_a_busy_model(service, scorer, ask("gone"), ask("stays"))
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert len(service.batcher.waiting) == 1 and service.ready(), "its place is free at once"
        scorer.go.set()
        await asyncio.gather(held, stays)

    asyncio.run(run())
    assert scorer.batches == [["first"], ["stays"]]


def test_a_request_past_its_deadline_is_refused_and_never_scored(scorer):
    async def run():
        service = make(scorer, request_timeout_s=0.5)
        tasks = await behind_a_busy_model(service, scorer, ask("late"))
        found = await asyncio.gather(*tasks, return_exceptions=True)
        scorer.go.set()
        while service.batcher.busy:
            await asyncio.sleep(0.01)
        service.settings = service.settings.model_copy(update={"request_timeout_s": 30})
        return found, (await service.score(ask("next"))).results[0].id

    found, after = asyncio.run(run())
    assert [(p.status, p.limit, p.headers["Retry-After"]) for p in found] == [(503, "request_timeout_s", "1")] * 2
    assert after == "next" and scorer.batches == [["first"], ["next"]]


def test_a_fault_hits_its_batch_only(scorer):
    async def run():
        service = make(scorer)
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


def test_known_pairs_are_not_asked_again_and_answers_are_the_same(scorer):
    scorer.go.set()
    cache = CacheSettings(max_pairs=3, max_age_s=60)

    async def run():
        cached, plain = make(scorer, cache=cache), make(scorer)
        requests = [ask("a", "bb"), ask("ccc", "a"), ask("bb"), ask("dddd", "bb", "a"), ask("ccc")]
        answers = [[await service.score(request) for request in requests] for service in (cached, plain)]
        return answers, figures(cached)

    (cached, plain), seen = asyncio.run(run())
    assert cached == plain
    assert scorer.batches[:4] == [["a", "bb"], ["ccc"], ["dddd"], ["ccc"]], "ccc was unused for longest of three"
    assert (seen["broadfast_cache_hits_total"], seen["broadfast_cache_misses_total"]) == (4, 5)


def test_old_answers_are_forgotten(scorer):
    scorer.go.set()

    async def run():
        service = make(scorer, cache=CacheSettings(max_pairs=9, max_age_s=0.05))
        for _ in range(2):
            await service.score(ask("a"))
            await asyncio.sleep(0.1)

    asyncio.run(run())
    assert scorer.batches == [["a"], ["a"]]


def test_another_text_under_the_same_id_is_another_pair(scorer):
    scorer.go.set()

    async def run():
        service = make(scorer, cache=CacheSettings(max_pairs=9))
        for product in ({"title": "t"}, {"title": "t", "brand": "b"}, {"title": "u"}):
            await service.score(ScoreInput(query="q", products=[ProductInput(id="same", **product)]))
        await service.score(ScoreInput(query="other", products=[ProductInput(id="same", title="t")]))

    asyncio.run(run())
    assert len(scorer.batches) == 4


class Failing(Held):
    """A scorer that fails on what it is asked, and on a pair of ours only while `broken`."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.broken = broken
        self.go.set()

    def score(self, pairs):
        if self.broken:
            raise RuntimeError("an illegal memory access")
        return SimpleNamespace(probabilities=np.ones((1, 2)))


@pytest.mark.parametrize("broken", [True, False])
def test_a_model_that_fails_batch_after_batch_is_wrong_unless_it_scores_a_pair_of_ours(broken):
    """What a client asks must not make Ray Serve replace a sound replica."""

    async def run():
        service = make(Failing(broken))
        for _ in range(FAILED_BATCHES + 1):
            with pytest.raises(RuntimeError, match="a fault in the model"):
                await service.score(ask("broken"))
        wrong = service.wrong()
        await service.close()
        return wrong

    said = asyncio.run(run())
    assert ("in a row" in said) if broken else said is None


def test_a_model_that_hangs_is_wrong(scorer):
    async def run():
        service = make(scorer, request_timeout_s=0.5)
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


def test_a_cached_score_depends_on_everything_that_a_student_may_read():
    texts = [{}, {"brand": "b"}, {"description": "b"}, {"bullets": "b"}, {"attributes": {"a": "b"}}]
    products = [ProductInput(id="1", title="t", **given) for given in [*texts, {"attributes": {"b": "a"}}]]
    assert len({key_of(ask("t"), product) for product in products}) == 6
    assert key_of(ask("t"), products[0]) == key_of(ask("t"), ProductInput(id="2", title="t"))
