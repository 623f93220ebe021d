"""Starting is refused early where it cannot work; `score_once` speaks plainly."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError

from cluster.base.errors import UserError
from cluster.base.free_port import free_port
from serve.config import ReplicaSettings, ServeSettings
from serve.http.refusals import Refusal
from serve.http.routes import make_api
from serve.on_ray.deployment import ReplicaState
from serve.on_ray.rollout import check_ours, until_loaded
from serve.on_ray.running_service import (
    RunningService,
    address_of,
    check_alone,
    check_port,
    check_resources,
    how_far,
    score_once,
    serve_export,
    start_ingress,
    stop_signals,
    wait_until_ready,
)
from tests.helpers.echo_service import Echo
from tests.helpers.local_service import running


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_in_use_is_named(taken):
    with pytest.raises(UserError, match=rf"serve\.port: cannot listen on 127\.0\.0\.1:{taken}"):
        check_port(ServeSettings(port=taken))


def test_a_second_service_on_one_ray(monkeypatch):
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications={"other": None}))
    check_alone()
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications={"broadfast": None}))
    with pytest.raises(UserError, match=r"serves an export already\. Exchange it with `broadfast roll`"):
        check_alone()


@pytest.mark.parametrize(("others", "ended"), [({}, 1), ({"other": None}, 0)])
def test_ray_serve_is_ended_only_where_nobody_else_is_on_it(monkeypatch, others, ended):
    done = []
    monkeypatch.setattr("ray.serve.delete", done.append)
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications=others))
    monkeypatch.setattr("ray.serve.shutdown", lambda: done.append("shutdown"))
    RunningService("http://127.0.0.1:1").stop()
    assert done == ["broadfast"] + ended * ["shutdown"]


def test_a_service_that_does_not_start_leaves_no_application(monkeypatch):
    deleted = []

    def fail(*_, **__):
        raise RuntimeError("no replica could load it")

    for name in ("check_exports", "check_alone", "check_resources", "build_app", "start_ingress"):
        monkeypatch.setattr(f"serve.on_ray.running_service.{name}", lambda *_: None)
    monkeypatch.setattr("ray.serve.run", fail)
    monkeypatch.setattr("ray.serve.delete", lambda name, _blocking: deleted.append(name))
    with pytest.raises(RuntimeError, match="no replica could load it"):
        serve_export(Path("export"), ServeSettings())
    assert deleted == ["broadfast"]


def test_a_roll_of_what_a_serve_config_owns_is_refused():
    told = {"applications": {"broadfast": {"source": "imperative"}, "other": {"source": "declarative"}}}
    check_ours(told)
    told["applications"]["broadfast"]["source"] = "declarative"
    with pytest.raises(UserError, match="Change export_dir there"):
        check_ours(told)


def test_a_replica_may_drain_for_as_long_as_a_request_may_take():
    assert ServeSettings(request_timeout_s=50).drained_within_s == 55
    assert ServeSettings(drain_s=3).drained_within_s == 3


def test_more_than_the_cluster_has(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    check_resources(ServeSettings(cpus_per_replica=2))
    with pytest.raises(UserError, match=r"serve\.cpus_per_replica x serve\.replicas\.min asks for 4 CPU, .* has 2"):
        check_resources(ServeSettings(cpus_per_replica=2, replicas=ReplicaSettings(min=2, max=2)))
    with pytest.raises(UserError, match="asks for 1 GPU, the cluster has 0"):
        check_resources(ServeSettings(gpus_per_replica=1))


def test_nobody_listens():
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match="does not answer"):
        score_once(url, "q", [{"id": "a", "title": "t"}])
    with pytest.raises(UserError, match="did not become ready"):
        wait_until_ready(url, timeout_s=0)


def test_signals_set_the_event_and_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as stopped:
        assert not stopped.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.wait(300)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("host", "expected"),
    [("0.0.0.0", "127.0.0.1"), ("10.1.2.3", "10.1.2.3"), ("::1", "[::1]"), ("::", "[::1]"), ("fd00::2", "[fd00::2]")],
)
def test_an_address_to_call(host, expected):
    assert address_of(host, 80) == f"http://{expected}:80"


def test_what_is_on_this_machine_is_not_asked_of_a_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with running(make_api(Echo(), ServeSettings())) as url:
        wait_until_ready(url, timeout_s=60)
        assert score_once(url, "q", [{"id": "a", "title": "t"}])["model"] == "echo"


def test_who_is_told_to_come_back_does(monkeypatch):
    echo, asked = Echo(), []
    monkeypatch.setattr("time.sleep", asked.append)

    def once():
        return None if 3 in asked else Refusal(503, "Overloaded", "later", retry_after_s=3)

    echo.hasty = once
    with running(make_api(echo, ServeSettings())) as url:
        assert score_once(url, "q", [{"id": "a", "title": "t"}])["model"] == "echo"
    assert 3 in asked


class Client:
    """Ray Serve as somebody else has started it."""

    http_config = SimpleNamespace(host="10.0.0.7", port=8765)

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def get_serve_details(self):
        return {"applications": {"theirs": {"route_prefix": self.prefix}}}


def test_another_ray_serve_is_joined_where_it_listens(monkeypatch):
    monkeypatch.setattr("ray.serve.start", lambda **_: pytest.fail("it runs already"))
    monkeypatch.setattr("serve.on_ray.running_service.serve_client", lambda: Client("/theirs"))
    assert start_ingress(ServeSettings()) == "http://10.0.0.7:8765"
    monkeypatch.setattr("serve.on_ray.running_service.serve_client", lambda: Client("/"))
    with pytest.raises(UserError, match="'theirs' on this Ray Serve answers at / already"):
        start_ingress(ServeSettings())


def test_what_a_start_waits_for_is_said(monkeypatch):
    applications = {}
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications=applications))
    assert how_far() == "Ray Serve itself starts"
    deployment = SimpleNamespace(replica_states={"STARTING": 1, "RUNNING": 1}, message="")
    applications["broadfast"] = SimpleNamespace(deployments={"student": deployment})
    assert "replicas: 1 starting, 1 running; they import torch, load the student" in how_far()
    deployment.message = "no CPU is free"
    assert how_far().endswith("no CPU is free")


def test_a_replica_that_goes_during_a_roll_does_not_undo_it(monkeypatch):
    new = ReplicaState("two", "new")
    says = iter([RayActorError(), [ReplicaState("one", "old", loading="new")], TimeoutError(), [new]])

    def asked(handle):
        said = next(says)
        if isinstance(said, Exception):
            raise said
        return said

    monkeypatch.setattr("serve.on_ray.rollout.states", asked)
    monkeypatch.setattr("serve.on_ray.rollout.POLL_S", 0)
    assert until_loaded(None, Path("new"), 60) == [new]
    monkeypatch.setattr("serve.on_ray.rollout.states", lambda handle: [ReplicaState("one", "old", refused="damaged")])
    with pytest.raises(UserError, match="one: damaged"):
        until_loaded(None, Path("new"), 60)
