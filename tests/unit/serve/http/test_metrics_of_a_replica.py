"""Figures and the access log: what is counted under which name, and what never leaves the service."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from starlette.testclient import TestClient

from serve.config import LimitSettings, ServeSettings
from serve.http.metrics import Metrics
from serve.http.middleware import GONE, RequestLog
from serve.http.routes import make_api
from tests.helpers.echo_service import Echo

BODY = {"query": "secret shoe", "products": [{"id": "a", "title": "red shoe"}] * 2}
LIMITS = LimitSettings(body_bytes=200)


def samples(text):
    """Values by name and labels other than the replica."""
    return {
        (sample.name, *(value for key, value in sorted(sample.labels.items()) if key != "replica")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def client(**settings):
    log = logging.getLogger("tests.access") if settings.get("access_log") else None
    api = make_api(Echo(), ServeSettings(limits=LIMITS, **settings), log=log)
    return TestClient(api, raise_server_exceptions=False)


def test_requests_and_errors_are_counted_by_path_status_and_kind():
    asker = client()
    for body in (
        BODY,
        BODY,
        {**BODY, "query": "full"},
        {**BODY, "query": "broken"},
        {**BODY, "query": " "},
        {"x": "y" * 300},
    ):
        asker.post("/v1/score", json=body)
    asker.get("/wp-admin/7")
    asker.get("/healthz")
    answer = asker.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    seen = samples(answer.text)
    counted = {key[1:]: value for key, value in seen.items() if key[0] == "broadfast_requests_total"}
    assert counted == {
        ("/v1/score", "200"): 2, ("/v1/score", "503"): 1, ("/v1/score", "500"): 1, ("/v1/score", "422"): 1,
        ("/v1/score", "413"): 1, ("other", "404"): 1, ("/healthz", "200"): 1,
    }  # fmt: skip
    kinds = {
        name: {key[1]: value for key, value in seen.items() if key[0] == f"broadfast_{name}_total"}
        for name in ("errors", "refusals")
    }
    assert kinds == {
        "errors": {"request_timeout_s": 1, "internal_error": 1},
        "refusals": {"the_request_is_not_valid": 1, "body_bytes": 1, "not_found": 1},
    }  # fmt: skip
    assert seen["broadfast_request_seconds_count", "/v1/score"] == 6


def test_one_log_line_per_request_without_the_query(caplog):
    with caplog.at_level(logging.INFO, "tests.access"):
        client(access_log=True).post("/v1/score", json=BODY, headers={"X-Request-ID": "abc"})
        client(access_log=True).post("/v1/score", json={**BODY, "query": "full"})
    first, second = caplog.records
    assert first.getMessage() == "POST /v1/score 200"
    assert (first.request_id, first.path, first.status, first.pairs) == ("abc", "/v1/score", 200, 2)
    assert first.ms >= 0 and (second.status, second.kind) == (503, "request_timeout_s")
    assert len(second.request_id) == 36
    assert not any("secret" in str(record.__dict__) for record in caplog.records)


def test_the_query_is_logged_where_it_is_asked_for(caplog):
    with caplog.at_level(logging.INFO, "tests.access"):
        client(access_log=True, log_queries=True).post("/v1/rerank", json={"query": "a shoe", "documents": ["x"]})
    (record,) = caplog.records
    assert (record.query, record.pairs) == ("a shoe", 1)


def test_queries_without_a_log_have_no_effect_and_are_refused():
    with pytest.raises(ValidationError, match=r"serve\.log_queries has no effect without serve\.access_log"):
        ServeSettings(log_queries=True)


@pytest.mark.parametrize(("query", "status"), [("shoe", 200), ("full", 503)])
def test_answers_and_refusals_tell_the_time_that_the_replica_took(query, status):
    answer = client().post("/v1/rerank", json={"query": query, "documents": ["x"]})
    name, _, ms = answer.headers["server-timing"].partition(";dur=")
    assert (answer.status_code, name) == (status, "replica") and float(ms) >= 0


def test_a_client_that_went_away_is_counted_as_such():
    metrics = Metrics()

    async def never(scope, receive, send):
        await asyncio.sleep(60)

    async def run():
        scope = {"type": "http", "method": "POST", "headers": []}
        task = asyncio.create_task(RequestLog(never, metrics, None, False)(scope, None, None))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    seen = samples(metrics.text())
    assert not any(name.endswith(("errors_total", "refusals_total")) for name, *_ in seen), "nobody's fault"
    assert seen["broadfast_requests_total", "other", str(GONE)] == 1


class Reported:
    """What a replica reports through Ray: `ray.serve.metrics` without Ray."""

    def __init__(self) -> None:
        self.said: list[tuple] = []

    def Counter(self, name, about, tag_keys):
        return SimpleNamespace(inc=lambda amount, tags: self._say(name, tag_keys, amount, tags))

    def Histogram(self, name, about, boundaries, tag_keys):
        return SimpleNamespace(observe=lambda value, tags: self._say(name, tag_keys, value, tags))

    def Gauge(self, name, about, tag_keys):
        return SimpleNamespace(set=lambda value, tags: self._say(name, tag_keys, value, tags))

    def _say(self, name, keys, value, tags):
        assert set(keys) == set(tags) and "replica" not in keys and value, "Ray Serve adds the replica itself"
        self.said.append((name, value, tags))


def test_what_is_counted_is_reported_through_ray_too():
    ray = Reported()
    metrics = Metrics("one", ray)
    figures = metrics.of_model("demo@1")
    figures.pairs.inc(3)
    figures.cache_hits.inc(0)
    figures.batch_pairs.observe(3)
    metrics.answered("/v1/score", 200, 0.1, None)
    metrics.scored_by("new", "demo@1", shadow=False)
    assert ray.said == [
        ("broadfast_pairs_total", 3, {"model": "demo@1"}),
        ("broadfast_batch_pairs", 3, {"model": "demo@1"}),
        ("broadfast_requests_total", 1, {"path": "/v1/score", "status": "200"}),
        ("broadfast_request_seconds", 0.1, {"path": "/v1/score"}),
        ("broadfast_arm_requests_total", 1, {"arm": "new", "model": "demo@1", "shadow": "false"}),
    ]
    seen = samples(metrics.text())
    assert seen["broadfast_pairs_total", "demo@1"] == 3
    assert seen["broadfast_arm_requests_total", "new", "demo@1", "false"] == 1


def test_the_dashboard_shows_figures_that_there_are():
    dashboard = json.loads((Path(__file__).parents[4] / "serve" / "grafana.json").read_text(encoding="utf-8"))
    metrics = Metrics()
    metrics.of_model("m")
    known = {f"{metric.name}{'_total' * (metric.type == 'counter')}" for metric in metrics.registry.collect()}
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for expression in asked for name in re.findall(r"ray_(broadfast_\w+)", expression)}
    assert len(asked) > 8 and {re.sub("_bucket$|_sum$|_count$", "", name) for name in named} <= known


def test_each_counter_is_named_as_prometheus_wants_it():
    for metric in Metrics().registry.collect():
        assert metric.type in ("counter", "gauge", "histogram") and "_total" not in metric.name
        assert metric.type != "histogram" or metric.name.endswith(("_seconds", "_pairs"))
