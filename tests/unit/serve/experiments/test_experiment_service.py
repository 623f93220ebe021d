"""Arms behind the service: who asks is dealt, shadows never answer, and what was seen is written."""

from __future__ import annotations

import asyncio

import pytest
from fastapi.testclient import TestClient

from cluster.base.errors import UserError
from serve.config import ServeSettings
from serve.experiments.assign import assign, unit_digest
from serve.experiments.config import Arm, ExperimentSettings
from serve.experiments.experiment_service import ExperimentService, check_exports, start_experiment
from serve.experiments.exposures import ExposureLog, read_exposures
from serve.http.refusals import Refusal
from serve.http.routes import make_api
from serve.http.schemas import Asker, ProductInput, Result, ScoreInput
from serve.replica.model_thread import ModelThread
from serve.replica.replica import QueuedStudent
from serve.scoring.scorer import Scorer
from tests.helpers.report_run import write_export

NAMES = ("control", "new", "shade")


class Constant:
    """A scorer whose every score is the same."""

    explainer = drift = None

    def __init__(self, name: str, score: float) -> None:
        self.name, self.value = name, score

    def answer(self, requests):
        return [
            [Result(id=p.id, label="E", score=self.value, probabilities={}, perspectives={}) for p in r.products]
            for r in requests
        ]


def experiment(folder, exports=NAMES):
    return ExperimentSettings(
        name="titles",
        folder=folder,
        arms=(
            Arm(name="control", export=str(exports[0]), share=0.5),
            Arm(name="new", export=str(exports[1]), share=0.5),
            Arm(name="shade", export=str(exports[2]), shadow=True),
        ),
    )


@pytest.fixture
def service(tmp_path):
    thread, settings = ModelThread(), ServeSettings()
    default = QueuedStudent(Constant("default", 0.1), settings, thread)
    arms = {
        name: QueuedStudent(Constant(name, 0.2 + i / 10), settings, thread, default.metrics)
        for i, name in enumerate(NAMES)
    }
    plan = experiment(tmp_path / "exposures")
    return ExperimentService(default, arms, plan, ExposureLog(plan.folder, plan))


async def finish(service):
    """Close what a replica would: the service, then the log that outlives it."""
    await service.close()
    await asyncio.to_thread(service.exposures.close)


def ask(*ids, explain=False):
    return ScoreInput(query="q", products=[ProductInput(id=i, title=i) for i in ids], explain=explain)


def seen(service):
    rows = read_exposures(service.experiment.folder).to_pylist()
    return {(row["request_id"], row["arm"]): row for row in rows}


def test_each_unit_is_answered_by_its_arm_and_every_exposure_is_written(service):
    async def run():
        answers = {}
        for n in range(60):
            asker = Asker(f"r{n}", {"X-Unit-ID": f"shopper-{n % 20}"})
            answers[n] = await service.score(ask("a", "b"), asker)
            await asyncio.gather(*service.in_shadow)  # a shadow leaves out while another request waits
        await finish(service)
        return answers

    answers, rows = asyncio.run(run()), seen(service)
    assert len(rows) == 120, "an arm and a shadow each"
    assert {answer.model for answer in answers.values()} == {"control", "new"}
    for n, answer in answers.items():
        arm = assign(service.experiment, f"shopper-{n % 20}")
        row, shadow = rows[f"r{n}", arm.name], rows[f"r{n}", "shade"]
        assert answer.model == arm.name
        assert row["unit"] == unit_digest(service.exposures.secret, f"shopper-{n % 20}") == shadow["unit"]
        assert (row["products"], row["model"], shadow["model"]) == (["a", "b"], arm.name, "shade")
        assert row["scores"] == pytest.approx([result.score for result in answer.results])
        assert (row["shadow"], shadow["shadow"]) == (False, True)
        assert shadow["scores"] == pytest.approx([0.4, 0.4])


def test_who_names_no_unit_is_in_no_arm(service):
    async def run():
        answers = [await service.score(ask("a"), asker) for asker in (None, Asker("r"), Asker("r", {"X-Unit-ID": ""}))]
        await finish(service)
        return answers

    assert [answer.model for answer in asyncio.run(run())] == ["default"] * 3
    with pytest.raises(UserError, match="no parquet part"):
        seen(service)


def test_an_arm_that_is_named_answers_and_nobody_is_exposed(service):
    async def run():
        named = [Asker("r", {"X-Unit-ID": "u", "X-Arm": name}) for name in NAMES]
        answers = [await service.score(ask("a"), asker) for asker in named]
        with pytest.raises(Refusal, match="X-Arm 'old': the arms are control, new, shade"):
            await service.score(ask("a"), Asker("r", {"X-Arm": "old"}))
        await finish(service)
        return answers

    assert [answer.model for answer in asyncio.run(run())] == list(NAMES)
    assert "broadfast_arm_requests_total{" not in service.metrics.text()
    with pytest.raises(UserError, match="no parquet part"):
        seen(service)


def test_a_service_without_an_experiment_has_no_arm_to_name(service):
    async def run():
        with pytest.raises(Refusal, match="runs no experiment"):
            await service.default.score(ask("a"), Asker("r", {"X-Arm": "new"}))
        await finish(service)

    asyncio.run(run())


def test_a_shadow_does_not_make_the_service_unready_or_refuse(service, monkeypatch):
    full = Refusal(503, "Overloaded", "x")
    for broken in ("wrong", "hasty"):
        monkeypatch.setattr(service.arms["shade"], broken, lambda: full)
    assert service.ready() and service.hasty() is None
    monkeypatch.setattr(service.arms["new"], "hasty", lambda: full)
    assert service.ready() and service.hasty() is None, "another arm would take it"
    monkeypatch.setattr(service.arms["new"], "wrong", lambda: "it hangs")
    assert not service.ready()


def test_a_shadow_leaves_out_while_requests_wait_for_the_model(service, monkeypatch):
    async def run():
        monkeypatch.setattr(service.arms["new"], "waiting", lambda: 1)
        await service.score(ask("a"), Asker("busy", {"X-Unit-ID": "u"}))
        await asyncio.gather(*service.in_shadow)
        monkeypatch.undo()
        await service.score(ask("a"), Asker("idle", {"X-Unit-ID": "u"}))
        await finish(service)

    asyncio.run(run())
    assert {request for request, arm in seen(service) if arm == "shade"} == {"idle"}
    text = service.metrics.text()
    assert 'broadfast_shadow_skipped_total{arm="shade",replica="local"} 1.0' in text
    assert 'broadfast_exposures_lost_total{replica="local"} 0.0' in text
    assert 'broadfast_arm_requests_total{arm="shade",model="shade",replica="local",shadow="true"} 1.0' in text
    assert 'broadfast_model_seconds_count{model="shade",replica="local"} 1.0' in text


def test_a_refusal_is_no_exposure_and_a_shadow_that_refuses_disturbs_nobody(service):
    async def run():
        with pytest.raises(Refusal, match="rationale index"):
            await service.score(ask("a", explain=True), Asker("refused", {"X-Unit-ID": "u"}))

        async def full(request):
            raise Refusal(503, "Overloaded", "try again")

        service.arms["shade"].score = full
        await service.score(ask("a"), Asker("answered", {"X-Unit-ID": "u"}))
        await finish(service)
        return service.metrics.text()

    text = asyncio.run(run())
    assert 'broadfast_shadow_skipped_total{arm="shade",replica="local"} 1.0' in text
    assert list(seen(service)) == [("answered", assign(service.experiment, "u").name)]


def test_over_http_the_header_names_the_unit_in_any_case(service):
    body = {"query": "q", "products": [{"id": "a", "title": "a"}]}
    with TestClient(make_api(service, ServeSettings())) as client:
        answers = [
            client.post("/v1/score", json=body, headers={name: "u", "X-Request-ID": f"r-{name}"}).json()["model"]
            for name in ("X-Unit-ID", "x-unit-id", "X-Nobody")
        ]
        named = client.post("/v1/score", json=body, headers={"X-Unit-ID": "u", "x-arm": "shade"}).json()["model"]
        client.portal.call(finish, service)
    assert named == "shade"
    arm = assign(service.experiment, "u").name
    assert answers == [arm, arm, "default"]
    assert {request for request, name in seen(service) if name == arm} == {"r-X-Unit-ID", "r-x-unit-id"}


def test_an_export_of_several_arms_is_loaded_once(tmp_path):
    exports = [write_export(tmp_path / name, tmp_path / f"bert-{name}") for name in ("first", "second")]
    plan = experiment(tmp_path / "exposures", (exports[0], exports[1], exports[1]))
    settings = ServeSettings(experiment=plan)
    check_exports(exports[0], settings)
    default = QueuedStudent(Scorer.load(exports[0], settings), settings, ModelThread())
    log = ExposureLog(plan.folder, plan)
    service = start_experiment(default, exports[0], settings, log)
    assert service.arms["control"] is default
    assert service.arms["new"] is service.arms["shade"] is not default
    assert [(model.id, model.arms) for model in service.models] == [
        (default.model, ["control"]),
        (service.arms["new"].model, ["new", "shade"]),
    ]
    service.exposures.close()


def test_an_arm_without_an_export_is_refused_before_the_start(tmp_path):
    export = write_export(tmp_path / "export", tmp_path / "bert")
    settings = ServeSettings(experiment=experiment(tmp_path, (export, export, tmp_path / "nowhere")))
    with pytest.raises(UserError, match="nowhere is not a folder"):
        check_exports(export, settings)
