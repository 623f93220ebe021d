"""Autoscaling on a real local Ray Serve: a second replica comes under load, answers, and goes when it is over."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import ray

from cluster.base.free_port import free_port
from serve.config import ReplicaSettings, ServeSettings
from serve.on_ray.running_service import score_once, serve_export
from tests.helpers.report_run import write_export

PRODUCTS = [{"id": str(i), "title": "red phone case mug lamp " * 8} for i in range(100)]
PATIENCE_S = 300  # ends a hang; here seconds


def running_replicas() -> int:
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sum("SERVE_REPLICA" in actor["name"] for actor in actors)


def until(count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (found := running_replicas()) != count:
        assert time.monotonic() < deadline, f"{found} replicas, not {count}"
        time.sleep(0.2)


def test_a_replica_comes_under_load_and_goes_after_it(local_ray, tmp_path):
    export = write_export(tmp_path / "export", tmp_path / "bert")
    port = free_port()
    replicas = ReplicaSettings(min=1, max=2, target_ongoing=2, up_after_s=1, down_after_s=3)
    settings = ServeSettings(port=port, cpus_per_replica=0.5, replicas=replicas, request_timeout_s=120)
    service = serve_export(export, settings, ready=lambda url: None, blocking=False)
    try:
        assert running_replicas() == 1
        enough = threading.Event()

        def shop() -> int:
            answered = 0
            while not enough.is_set():
                answered += len(score_once(service.url, "red phone", PRODUCTS, timeout_s=PATIENCE_S)["results"])
            return answered

        with ThreadPoolExecutor(8) as pool:
            shoppers = [pool.submit(shop) for _ in range(8)]
            try:
                until(2)
            finally:
                enough.set()
            assert all(shopper.result(PATIENCE_S) >= 100 for shopper in shoppers), "nobody was refused on the way"
        until(1)
        assert len(score_once(service.url, "red phone", PRODUCTS)["results"]) == 100
    finally:
        service.stop()
