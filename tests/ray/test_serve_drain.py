"""SIGTERM: a service that was started to block finishes what it holds, then ends with 0."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.base.free_port import free_port
from serve.on_ray.running_service import score_once
from tests.helpers.report_run import write_export

SERVER = """
import sys
from pathlib import Path
from serve.config import ServeSettings
from serve.on_ray.proxy import use_ingress
settings = ServeSettings(port=int(sys.argv[2]), ingress=sys.argv[3], request_timeout_s=300)
use_ingress(settings)
from cluster.base.ray_session import ray_session
from cluster.config import ClusterSettings
from serve.on_ray.running_service import serve_export
with ray_session(ClusterSettings(num_cpus=1, object_store_mb=100)):
    serve_export(Path(sys.argv[1]), settings)
    print("drained", flush=True)
"""


def answered_after_sigterm(ingress: str, export: Path) -> None:
    """Start a service behind this ingress, end it while it has requests, and look whether it answered them all."""
    port = free_port()
    command = [sys.executable, "-c", SERVER, str(export), str(port), ingress]
    root = Path(__file__).parents[2]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root)
    try:
        assert server.stdout is not None
        assert any(f"listening on http://127.0.0.1:{port}" in line for line in server.stdout), "it never got ready"
        products = [{"id": str(i), "title": "red phone case mug lamp " * 8} for i in range(200)]
        score_once(f"http://127.0.0.1:{port}", "red phone", products, timeout_s=300)  # now it knows its pace
        with ThreadPoolExecutor(20) as pool:
            asked = [
                pool.submit(score_once, f"http://127.0.0.1:{port}", "red phone", products, timeout_s=300)
                for _ in range(20)
            ]
            while not any(future.done() for future in asked):  # the first answer: all are on their way
                time.sleep(0.005)
            server.send_signal(signal.SIGTERM)
            assert sum(not future.done() for future in asked) > 0, "nothing was left to drain"
            assert [len(future.result(300)["results"]) for future in asked] == [200] * 20
        rest = server.stdout.read()
        assert server.wait(300) == 0
        assert "drained" in rest
    finally:
        server.kill()


@pytest.mark.parametrize("ingress", ["ray", "haproxy"])
def test_requests_in_flight_are_answered_after_sigterm(tmp_path: Path, ingress: str) -> None:
    answered_after_sigterm(ingress, write_export(tmp_path / "export", tmp_path / "bert"))
