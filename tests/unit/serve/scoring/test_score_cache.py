"""Scores that are kept: what is known needs no model, no place in the queue, and is forgotten in time."""

from __future__ import annotations

import asyncio

import pytest

from serve.config import CacheSettings, ServeSettings
from serve.http.metrics import Metrics
from serve.http.refusals import Refusal
from serve.http.schemas import ProductInput, ScoreInput
from serve.scoring.score_cache import ScoreCache
from serve.scoring.scorer import Scorer
from tests.helpers.report_run import write_export
from tests.helpers.scripted_model import Held, ask, behind_a_busy_model, figures, queued


@pytest.fixture
def scorer():
    return Held()


def test_known_pairs_are_not_asked_again_and_answers_are_the_same(scorer):
    scorer.go.set()
    cache = CacheSettings(max_pairs=3, max_age_s=60)

    async def run():
        cached, plain = queued(scorer, cache=cache), queued(scorer)
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
        service = queued(scorer, cache=CacheSettings(max_pairs=9, max_age_s=0.05))
        for _ in range(2):
            await service.score(ask("a"))
            await asyncio.sleep(0.1)

    asyncio.run(run())
    assert scorer.batches == [["a"], ["a"]]


def test_another_text_under_the_same_id_is_another_pair(scorer):
    scorer.go.set()

    async def run():
        service = queued(scorer, cache=CacheSettings(max_pairs=9))
        for product in ({"title": "t"}, {"title": "t", "brand": "b"}, {"title": "u"}):
            await service.score(ScoreInput(query="q", products=[ProductInput(id="same", **product)]))
        await service.score(ScoreInput(query="other", products=[ProductInput(id="same", title="t")]))

    asyncio.run(run())
    assert len(scorer.batches) == 4


def test_what_is_known_is_answered_while_the_model_has_too_much_to_do(scorer):
    async def run():
        service = queued(scorer, cache=CacheSettings(max_pairs=9), request_timeout_s=60)
        scorer.go.set()
        known = await service.score(ask("known"))
        scorer.go.clear()
        held = await behind_a_busy_model(service, scorer, ask("waits"))
        service.pace.assumed_s = service.pace.seconds = 1e9
        assert service.hasty() is None, "whether it is known is only seen in the request"
        with pytest.raises(Refusal):
            await service.score(ask("known", "new"))
        again = await service.score(ask("known"))
        scorer.go.set()
        await asyncio.gather(*held)
        return known == again

    assert asyncio.run(run())
    assert scorer.batches == [["known"], ["first"], ["waits"]]


def test_a_pair_is_known_by_what_its_student_reads(tmp_path):
    export = write_export(tmp_path / "export", tmp_path / "bert")
    scorer = Scorer.load(export, ServeSettings())
    scorer.tokens.fields = "title+brand"
    cache = ScoreCache(scorer.reads, CacheSettings(max_pairs=9), Metrics().of_model("m"))

    def key(query="red phone", **product):
        return cache._key(ScoreInput(query=query, products=[]), ProductInput(id="1", **product))

    plain = key(title="case")
    assert plain == key(title=" case ", description="never read") == key(query="red  phone", title="case")
    assert len({plain, key(title="case", brand="Mug"), key(title="lamp"), key(query="red", title="phone case")}) == 4
    asked = ScoreInput(query="red phone", products=[], explain=True)
    assert cache._key(asked, ProductInput(id="1", title="case")) != plain
