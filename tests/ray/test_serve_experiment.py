"""An experiment on a real local Ray Serve: after a stop, every exposure of every answer is in the folder."""

from __future__ import annotations

import json
import urllib.request

from cluster.base.free_port import free_port
from serve.config import ServeSettings
from serve.experiments.assign import assign
from serve.experiments.config import Arm, ExperimentSettings
from serve.experiments.exposures import read_exposures
from serve.on_ray.running_service import serve_export
from tests.helpers.report_run import write_export


def ask(url: str, unit: str) -> tuple[str, str]:
    """Score one product for `unit`; return the request's id and the model that answered."""
    body = json.dumps({"query": "red phone", "products": [{"id": "a", "title": "red phone case"}]}).encode()
    headers = {"Content-Type": "application/json", "X-Unit-ID": unit}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/score", body, headers), timeout=300) as answer:
        return answer.headers["X-Request-ID"], json.load(answer)["model"]


def test_nothing_is_lost_when_the_service_stops(local_ray, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (write_export(tmp_path / name, tmp_path / f"bert-{name}") for name in ("first", "second"))
    plan = ExperimentSettings(
        name="titles",
        folder="exposures",
        flush_seconds=3600,
        arms=(
            Arm(name="control", export="first", share=0.5),
            Arm(name="new", export="second", share=0.5),
            Arm(name="shade", export="second", shadow=True),
        ),
    )
    port = free_port()
    settings = ServeSettings(port=port, experiment=plan)
    service = serve_export(first, settings, ready=lambda url: None, blocking=False)
    try:
        answers = {unit: ask(service.url, unit) for unit in (f"shopper-{n}" for n in range(12))}
    finally:
        service.stop()
    assert first.is_dir() and second.is_dir()
    rows = {(row["request_id"], row["arm"]) for row in read_exposures(tmp_path / "exposures").to_pylist()}
    expected = {(request, assign(plan, unit).name) for unit, (request, _) in answers.items()}
    assert rows == expected | {(request, "shade") for request, _ in answers.values()}
    for unit, (_, model) in answers.items():
        assert model.startswith({"control": "first@", "new": "second@"}[assign(plan, unit).name])
