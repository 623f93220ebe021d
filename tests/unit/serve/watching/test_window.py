"""The window of scored pairs: what counts, what is forgotten, and what a service says of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from cluster.base.errors import UserError
from distill.student.model import read_student_config
from distill.student.reference import Histogram, Reference, write_reference
from mpcot.schemes.scheme import load_scheme
from serve.config import CacheSettings, ServeSettings
from serve.experiments.config import Arm, ExperimentSettings
from serve.http.metrics import Metrics
from serve.http.routes import make_api
from serve.replica.model_swap import SwappingService
from serve.scoring.scorer import Scorer, export_name
from serve.scoring.scores import Scores
from serve.watching import window
from serve.watching.window import DriftWindow, bin_names
from tests.helpers.local_service import local_service
from tests.helpers.report_run import write_export

ESCI = load_scheme("esci")
DEV = Reference(
    pairs=400,
    histograms={
        "score": Histogram(edges=(0.5,), counts=(200, 200)),
        "label": Histogram(edges=(1, 2, 3), counts=(200, 0, 0, 200)),
        "length": Histogram(edges=(8, 10), counts=(100, 100, 200)),
        "unknown_tokens": Histogram(edges=(1e-9, 0.5), counts=(400, 0, 0)),
    },
)


def scores(label: int, pairs: int, length: int = 8, unknown: int = 0) -> Scores:
    return Scores(np.eye(4)[[label] * pairs], None, None, np.full(pairs, length), np.full(pairs, unknown))


def counted(own: DriftWindow) -> dict[str, list[int]]:
    return {name: counts.tolist() for name, counts in own.counts()[1].items()}


def test_pairs_are_counted_by_the_bins_of_the_reference() -> None:
    own = DriftWindow("m", DEV, ESCI)
    own.add(scores(0, 3))
    own.add(scores(3, 2, length=20, unknown=2))
    assert own.counts()[0] == 5
    assert counted(own) == {
        "score": [2, 3], "label": [3, 0, 0, 2], "length": [0, 3, 2], "unknown_tokens": [3, 2, 0],
    }  # fmt: skip


def test_the_oldest_pairs_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "MOST_PAIRS", 30)
    monkeypatch.setattr(window, "BLOCK_PAIRS", 10)
    own = DriftWindow("m", DEV, ESCI)
    own.add(scores(0, 10))
    own.add(scores(1, 10))
    own.add(scores(2, 4))
    assert counted(own)["label"] == [10, 10, 4, 0]
    own.add(scores(3, 7))
    assert counted(own)["label"] == [0, 10, 4, 7] and own.counts()[0] == 21
    for _ in range(20):
        own.add(scores(0, 9))
        assert 0 < own.counts()[0] <= 30, "also where batches and blocks do not fit each other"


def test_what_was_served_is_compared_with_dev() -> None:
    own = DriftWindow("m", DEV, ESCI)
    assert {one.psi for one in own.drift().quantities} == {None}, "nothing was scored yet"
    own.add(scores(0, 400, length=9))
    by_name = {one.quantity: one for one in own.drift().quantities}
    assert (by_name["unknown_tokens"].psi, by_name["unknown_tokens"].reading) == (0, "stable")
    assert by_name["label"].reading == "changed"
    assert [(b.name, b.reference, b.served) for b in by_name["length"].bins] == [
        ("below 8", 0.25, 0), ("8 to 9", 0.25, 1), ("10 and more", 0.5, 0),
    ]  # fmt: skip
    few = DriftWindow("m", DEV, ESCI)
    few.add(scores(0, 40))
    assert {one.reading for one in few.drift().quantities} == {"too few pairs"}


def test_bins_have_names_that_can_be_read() -> None:
    assert bin_names("score", [0.1, 0.5], ESCI) == ["0 to 0.1", "0.1 to 0.5", "0.5 to 1"]
    assert bin_names("length", [8], ESCI) == ["below 8", "8 and more"]
    assert bin_names("unknown_tokens", [1e-9, 0.02, 0.05], ESCI) == ["none", "below 2 %", "2 to 5 %", "5 % and more"]
    assert bin_names("label", [1, 2, 3], ESCI)[0] == "E Exact"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return write_export(tmp_path / "export", tmp_path / "bert")


def refer(export: Path) -> None:
    """Give the export a dev split of 40 pairs."""
    pairs = [{"pair_id": str(n), "query": "red case", "title": f"lamp {n}"} for n in range(40)]
    served = Scorer.load(export, ServeSettings()).score(pairs).probabilities.tolist()
    write_reference(export, read_student_config(export), pairs, {str(n): own for n, own in enumerate(served)})


def test_a_service_shows_the_drift_of_what_it_scored(export: Path) -> None:
    refer(export)
    settings = ServeSettings(cache=CacheSettings(max_pairs=10))
    service = local_service(Scorer.load(export, settings), settings)
    body = {"query": "red case", "products": [{"id": "a", "title": "lamp ☃"}, {"id": "b", "title": "mug"}]}
    with TestClient(make_api(service, settings)) as client:
        for _ in range(2):
            assert client.post("/v1/score", json=body).status_code == 200
        (found,) = client.get("/v1/drift").json()["models"]
        figures = client.get("/metrics").text
    assert (found["model"], found["pairs"], found["reference_pairs"]) == (service.model, 2, 40), (
        "not those of the cache"
    )
    unknown = found["quantities"][-1]
    assert unknown["quantity"] == "unknown_tokens" and sum(b["served"] for b in unknown["bins"][1:]) == 0.5
    name = f'{{model="{service.model}",quantity="unknown_tokens",replica="local"}}'
    assert f"broadfast_drift_psi{name} {unknown['psi']!r}" in figures
    assert f'broadfast_drift_pairs{{model="{service.model}",replica="local"}} 2.0' in figures
    service.forget()
    assert "broadfast_drift_pairs{" not in service.metrics.text(), "that of a model that left is shown no more"


def test_a_roll_that_fails_takes_no_drift_with_it(export: Path, tmp_path: Path) -> None:
    refer(export)
    other, new = (write_export(tmp_path / name, tmp_path / f"bert-{name}") for name in ("other", "new"))
    arms = (Arm(name="control", export=str(export), share=0.5), Arm(name="new", export=str(other), share=0.5))
    plan = ExperimentSettings(name="e", folder=tmp_path / "exposures", arms=arms)
    service = SwappingService(ServeSettings(experiment=plan))

    async def run() -> list[str]:
        await service.load(export)
        (other / "model.safetensors").unlink()
        with pytest.raises(UserError):  # by then, the control was loaded a second time
            await service.load(new)
        models = [drift.model for drift in service.metrics.drifts.report().models]
        await service.close()
        return models

    assert asyncio.run(run()) == [export_name(export)]
    assert not service.metrics.drifts.windows


def test_an_export_without_a_reference_is_served_without_drift(export: Path) -> None:
    service = local_service(Scorer.load(export, ServeSettings()))
    with TestClient(make_api(service, ServeSettings())) as client:
        answer = client.post("/v1/score", json={"query": "red", "products": [{"id": "a", "title": "lamp"}]})
        assert answer.status_code == 200
        assert client.get("/v1/drift").json() == {"replica": "local", "models": []}
        assert "broadfast_drift_psi{" not in client.get("/metrics").text


def test_the_drift_is_told_to_ray_now_and_then() -> None:
    told: list[tuple[str, float, dict[str, str]]] = []

    class Gauges:
        class Gauge:
            def __init__(self, name: str, about: str, tag_keys: tuple[str, ...]) -> None:
                self.name, self.keys = name, tag_keys

            def set(self, value: float, tags: dict[str, str]) -> None:
                assert set(tags) == set(self.keys)
                told.append((self.name, value, tags))

        Counter = Histogram = lambda self, *_, **__: None

    own = DriftWindow("m", DEV, ESCI)
    own.add(scores(0, 400))
    metrics = Metrics("one", Gauges())
    metrics.drifts.windows.append(own)
    for _ in range(2):
        metrics.drifts.tell_ray()
    by_name = {one.quantity: one.psi for one in own.drift().quantities}
    assert told == [
        *(("broadfast_drift_psi", psi, {"model": "m", "quantity": name}) for name, psi in by_name.items()),
        ("broadfast_drift_pairs", 400, {"model": "m"}),
    ], "once, because the second time came a moment later"
    twin = DriftWindow("m", DEV, ESCI)
    metrics.drifts.windows.append(twin)
    told.clear()
    metrics.drifts.forget(own)
    assert not told, "another one of this name goes on"
    metrics.drifts.forget(twin)
    assert told[0] == ("broadfast_drift_pairs", 0, {"model": "m"}), "Ray would show the last values for ever"
    assert [tags["quantity"] for _, psi, tags in told[1:] if np.isnan(psi)] == list(by_name)
