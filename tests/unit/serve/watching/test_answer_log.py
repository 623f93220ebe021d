"""The log of answers: off by default, a sample where it is on, and whole rows that can be read again."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.base.errors import UserError
from serve.config import ServeSettings
from serve.http.schemas import Asker, ProductInput, Result, ScoreInput, ScoreResponse
from serve.on_ray.deployment import with_whole_paths
from serve.replica.model_swap import SwappingService
from serve.watching.answer_log import LOGGED, AnswerLog, open_answers
from serve.watching.config import AnswerLogSettings
from tests.helpers.report_run import write_export

PRODUCTS = [
    ProductInput(id="a", title="red <b>phone</b> case", brand="Mug", attributes={"colour": "red"}),
    ProductInput(id="b", title="lamp"),
]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("export"), tmp_path_factory.mktemp("bert"))


def serve_some(export: Path, settings: ServeSettings, requests: int = 1) -> str:
    """Answer so many requests and return what the service says in figures."""

    async def run() -> str:
        service = SwappingService(settings)
        await service.load(export)
        for n in range(requests):
            await service.score(ScoreInput(query=f"secret {n}", products=PRODUCTS), Asker(f"r{n}"))
        await service.close()
        return service.metrics.text()

    return asyncio.run(run())


def test_no_text_is_kept_unless_that_is_set(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ServeSettings().answer_log is None
    serve_some(export, ServeSettings())
    assert list(tmp_path.rglob("*")) == []
    with pytest.raises(UserError, match=r"holds no logged answers \(no parquet part is there\)"):
        open_answers(tmp_path)


def test_a_row_holds_what_was_asked_and_answered(export: Path, tmp_path: Path) -> None:
    serve_some(export, ServeSettings(answer_log=AnswerLogSettings(folder=tmp_path / "log", share=1)))
    first, second = open_answers(tmp_path / "log").to_table().to_pylist()
    assert (first["request_id"], first["query"], first["product_id"]) == ("r0", "secret 0", "a")
    assert (first["title"], first["brand"], dict(first["attributes"])) == (
        "red <b>phone</b> case",
        "Mug",
        {"colour": "red"},
    )
    assert second["brand"] is None and second["attributes"] is None
    shares = dict(second["probabilities"])
    assert second["label"] == max(shares, key=shares.__getitem__) and sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert first["model"].startswith("export") and first["at"].tzinfo is not None
    assert list(first) == LOGGED.names


def test_half_of_a_surrogate_pair_does_not_end_the_log(tmp_path: Path) -> None:
    settings = AnswerLogSettings(folder=tmp_path, share=1, flush_seconds=3600)
    with closing(AnswerLog(settings)) as log:
        for text in ("half \ud83d", "whole \U0001f4a1"):
            product = ProductInput(id="a", title=text, attributes={text: text})
            result = Result(id="a", label="E", score=1, probabilities={"E": 1}, perspectives={})
            log.note(ScoreInput(query=text, products=[product]), "r", ScoreResponse(model="m", results=[result]))
        log.flush()
    rows = open_answers(tmp_path).to_table().to_pylist()
    assert [row["query"] for row in rows] == ["half ?", "whole \U0001f4a1"]
    assert dict(rows[0]["attributes"]) == {"half ?": "half ?"} and rows[1]["title"] == "whole \U0001f4a1"


def test_about_the_share_of_the_requests_is_kept(export: Path, tmp_path: Path) -> None:
    log = AnswerLogSettings(folder=tmp_path / "log", share=0.3)
    figures = serve_some(export, ServeSettings(answer_log=log), 200)
    kept = open_answers(tmp_path / "log").to_table()["request_id"].to_pylist()
    assert 20 < len(set(kept)) < 110 and len(kept) == 2 * len(set(kept)), "all pairs of a request, or none"
    assert "broadfast_answers_lost_total" in figures


def test_replicas_get_a_whole_path_and_a_share_of_nothing_is_refused() -> None:
    whole = with_whole_paths(ServeSettings(answer_log=AnswerLogSettings(folder=Path("runs/answers"))))
    assert whole.answer_log is not None and whole.answer_log.folder == Path("runs/answers").resolve()
    with pytest.raises(ValidationError, match="greater than 0"):
        AnswerLogSettings(folder=Path("x"), share=0)


def test_what_somebody_asks_of_an_arm_is_not_kept(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The playground compares arms; those who try it are no shoppers."""

    async def run() -> None:
        service = SwappingService(ServeSettings(answer_log=AnswerLogSettings(folder=tmp_path, share=1)))
        await service.load(export)
        plain = service.current.service.score

        async def of_any_arm(request: ScoreInput, asker: Asker | None = None) -> ScoreResponse:
            return await plain(request)

        monkeypatch.setattr(service.current.service, "score", of_any_arm)
        await service.score(ScoreInput(query="tried", products=PRODUCTS), Asker("r0", {"X-Arm": "new"}))
        await service.score(ScoreInput(query="asked", products=PRODUCTS), Asker("r1"))
        await service.close()

    asyncio.run(run())
    assert {row["query"] for row in open_answers(tmp_path).to_table().to_pylist()} == {"asked"}


def test_the_log_goes_on_after_an_error_that_nobody_expects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(AnswerLog(AnswerLogSettings(folder=tmp_path, share=1, flush_seconds=0.01))) as log:
        tried = []

        def broken() -> None:
            tried.append(log.failure)
            raise ValueError("nobody expects this")

        with monkeypatch.context() as patch:
            patch.setattr(log, "flush", broken)
            while len(tried) < 3:
                log.wake.set()
        assert log.timer.is_alive() and isinstance(tried[-1], ValueError)
