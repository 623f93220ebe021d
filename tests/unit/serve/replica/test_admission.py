"""Who is let in: bursts, work counted in pairs and seconds, when to come back, and scores that are not numbers."""

from __future__ import annotations

import asyncio
import time

import httpx
import numpy as np
import pytest

from serve.config import CacheSettings, ServeSettings
from serve.http.refusals import Refusal
from serve.http.routes import make_api
from serve.replica.model_thread import KEPT, ModelThread, Pace
from serve.replica.replica import FAILED_BATCHES
from serve.scoring.scorer import Scorer
from serve.scoring.scores import Scores
from tests.helpers.local_service import running
from tests.helpers.report_run import write_export
from tests.helpers.scripted_model import Held, ask, behind_a_busy_model, queued


@pytest.fixture
def scorer():
    return Held()


def refusals(ends):
    return [end for end in ends if isinstance(end, Refusal)]


async def let_go(scorer, tasks):
    """Let the model work, and return how each task ended."""
    scorer.go.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_a_burst_of_one_loop_turn_is_bounded_too(scorer):
    async def run():
        service = queued(scorer, pair_s=10.0, request_timeout_s=80)
        tasks = [asyncio.create_task(service.score(ask("x"))) for _ in range(100)]
        await asyncio.sleep(0)
        waiting = service.waiting()
        return waiting, await let_go(scorer, tasks)

    waiting, ends = asyncio.run(run())
    assert waiting == 5, "four pairs take the 40 s that a request may wait, and the next finds no more than that"
    assert len(refusals(ends)) == 95


def test_work_is_counted_in_pairs_and_comes_back_when_there_is_less(scorer):
    async def run():
        service = queued(scorer, pair_s=10.0, request_timeout_s=80)
        tasks = await behind_a_busy_model(service, scorer, ask(*"abcd"))
        assert service.ready(), "a queue that is full for a moment makes nothing unready"
        ends = [refusals(await asyncio.gather(service.score(ask(*"xyz"[:n])), return_exceptions=True)) for n in (1, 3)]
        await let_go(scorer, tasks)
        after = await service.score(ask("after"))
        return [end for (end,) in ends], after

    (one, three), after = asyncio.run(run())
    assert (one.status, one.kind, one.limit) == (503, "overloaded", "request_timeout_s")
    assert one.headers["Retry-After"] == "10", "50 s of work, of which 40 may wait"
    assert three.headers["Retry-After"] == "10" and "about 50.0 s" in three.detail
    assert after.results[0].id == "after"


def test_what_cannot_be_done_in_time_is_refused_at_once(scorer):
    async def run():
        service = queued(scorer, pair_s=10.0, request_timeout_s=30)
        tasks = await behind_a_busy_model(service, scorer)
        small, large = service.full(2), service.full(3)
        await let_go(scorer, tasks)
        return small, large, service.full(4)

    small, large, alone = asyncio.run(run())
    assert small is None and alone is None, "an idle model takes anything: it may be faster than it was"
    assert large is not None and large.headers["Retry-After"] == "10"


def test_models_on_one_thread_wait_for_each_other(scorer):
    async def run():
        thread, other = ModelThread(), Held()
        one, two = (queued(model, 10.0, thread, request_timeout_s=20) for model in (scorer, other))
        tasks = await behind_a_busy_model(one, scorer, ask("waits"))
        other.go.set()
        refused = two.full(1)
        await let_go(scorer, tasks)
        await two.score(ask("other"))
        return refused, two.pace.seconds

    refused, measured = asyncio.run(run())
    assert refused is not None and refused.kind == "overloaded"
    assert measured < 10, "what a model takes does not include its turn"


def test_a_batch_of_several_takes_no_longer_than_a_request_may_wait(scorer):
    async def run():
        service = queued(scorer)
        await let_go(scorer, [service.score(ask("x"))])
        scorer.go.clear()
        service.pace.seconds, service.pace.pairs = 1000.0, 10.0  # 100 s per pair, of 150 that a request may wait
        tasks = await behind_a_busy_model(service, scorer)
        return tasks, await let_go(scorer, tasks), service.batcher.max_size

    assert asyncio.run(run())[2] == 1


def test_the_pace_follows_the_latest_batches():
    pace = Pace(0.5)
    assert pace.seconds_for(4) == 2.0
    pace.measured(10, 1.0)
    assert pace.seconds_for(10) == pytest.approx(1.0)
    pace.measured(10, 2.0)
    assert pace.seconds_for(10) == pytest.approx(10 * (KEPT + 2) / (KEPT * 10 + 10))
    assert (pace.pairs_in(1.0, 256), pace.pairs_in(1e-9, 256), pace.pairs_in(1e9, 256)) == (6, 1, 256)


def test_a_flood_over_http_is_answered_or_told_when_to_come_back():
    class Slow(Held):
        def answer(self, requests):
            time.sleep(0.05 * len(requests))
            return super().answer(requests)

    slow, body = Slow(), ask("red shoe").model_dump()
    slow.go.set()
    service = queued(slow, pair_s=0.05, request_timeout_s=2)

    async def flood(url):
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=300, limits=limits, trust_env=False) as client:
            return await asyncio.gather(*(client.post(f"{url}/v1/score", json=body) for _ in range(150)))

    with running(make_api(service, ServeSettings())) as url:
        answers = asyncio.run(flood(url))
    assert {answer.status_code for answer in answers} == {200, 503}
    for answer in answers:
        assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1


def test_a_score_that_is_no_number_fails_its_request_alone_and_is_not_kept(scorer):
    async def run():
        service = queued(scorer, cache=CacheSettings(max_pairs=9))
        tasks = await behind_a_busy_model(service, scorer, ask("not a number"), ask("sound"))
        ends = await let_go(scorer, tasks)
        return ends, list(service.cache.known.values())

    (_, wrong, right), kept = asyncio.run(run())
    assert isinstance(wrong, ArithmeticError) and not isinstance(right, Exception)
    assert [result.id for result in kept] == ["first", "sound"]


def test_a_model_without_numbers_is_replaced(scorer):
    scorer.go.set()

    def score(pairs):
        return Scores(np.array([[np.nan, 1.0]]), None, None)

    scorer.score = score

    async def run():
        service = queued(scorer)
        for _ in range(FAILED_BATCHES + 1):
            with pytest.raises(ArithmeticError):
                await service.score(ask("not a number"))
        return service.wrong(), service.ready()

    wrong, ready = asyncio.run(run())
    assert "in a row" in wrong and not ready


@pytest.mark.parametrize("part", ["probabilities", "verdicts", "latents"])
def test_what_is_no_number_in_any_part_is_no_answer(tmp_path, part, monkeypatch):
    scorer = Scorer.load(write_export(tmp_path / "export", tmp_path / "bert"), ServeSettings())
    plain = scorer.score

    def spoilt(pairs):
        scores = plain(pairs)
        getattr(scores, part)[1] = np.nan
        return scores

    monkeypatch.setattr(scorer, "score", spoilt)
    first, second = scorer.answer([ask("red phone"), ask("blue lamp", "mug")])
    assert [result.id for result in first] == ["red phone"]
    assert isinstance(second, ArithmeticError)
