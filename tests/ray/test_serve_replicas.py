"""Two replicas behind one address: figures of both, tokens, and what happens when one is killed under load."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray

from cluster.errors import UserError
from serve.config import AuthSettings, ReplicaSettings, ServeSettings
from serve.run import RunningService, score_once, serve_export
from tests.report_run import write_export

TOKEN = "a-token-of-the-shop-0123456789"
PRODUCTS = [{"id": str(i), "title": "red phone case mug lamp " * 8} for i in range(100)]
RECOVERY_S = 240  # on a busy machine; here it takes as long as a replica needs to load


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    export = write_export(folder / "export", folder / "bert")
    (folder / "tokens").write_text(TOKEN, encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray.init(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False)
    settings = ServeSettings(
        port=port,
        cpus_per_replica=0.5,
        replicas=ReplicaSettings(min=2, max=2),
        auth=AuthSettings(tokens_file=folder / "tokens"),
    )
    running = serve_export(export, settings, ready=lambda url: None, blocking=False)
    yield running
    running.stop()
    ray.shutdown()


def replicas(service: RunningService) -> set[str]:
    """The names of the replicas whose figures `/metrics` has."""
    request = urllib.request.Request(f"{service.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {
        line.split('replica="')[1].split('"')[0] for line in lines if line.startswith("broadfast_waiting_requests{")
    }


def until_there_are(count: int, service: RunningService) -> set[str]:
    deadline = time.monotonic() + RECOVERY_S
    while True:
        try:
            found = replicas(service)
        except urllib.error.URLError:  # asked of the one that is gone
            found = set()
        if len(found) == count:
            return found
        assert time.monotonic() < deadline, f"still {found}"
        time.sleep(0.2)


def test_only_a_known_token_is_served(service):
    with pytest.raises(UserError, match="answered 401"):
        score_once(service.url, "red phone", PRODUCTS[:1])
    assert len(score_once(service.url, "red phone", PRODUCTS[:1], token=TOKEN)["results"]) == 1


def ask(service: RunningService) -> str:
    """Score once; return how it ended."""
    try:
        return f"{len(score_once(service.url, 'red phone', PRODUCTS, token=TOKEN)['results'])} results"
    except UserError as error:
        return str(error).partition(" answered ")[2][:3]


def test_a_replica_killed_under_load_is_replaced_and_nothing_hangs(service):
    before = until_there_are(2, service)
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    victim = next(name for name in names if "SERVE_REPLICA" in name)
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, service) for _ in range(60)]
        while not any(future.done() for future in asked):
            time.sleep(0.005)
        ray.kill(ray.get_actor(victim, namespace="serve"))
        ends = [future.result(120) for future in asked]
    assert set(ends) <= {"100 results", "500", "503"}, "answered, or refused with 5xx"
    assert ends.count("100 results") > 30, "the other one went on"
    after = until_there_are(2, service)
    assert len(after & before) == 1, "one was kept, one is new"
    assert [ask(service) for _ in range(6)] == ["100 results"] * 6
