"""Starting and stopping the service on a Ray that the caller has connected, and asking it once."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve

from cluster.base.errors import UserError
from serve.config import ServeSettings
from serve.experiments.experiment_service import check_exports
from serve.http.bearer_tokens import read_digests
from serve.on_ray.deployment import APP_NAME, build_app

START_TIMEOUT_S = 180.0
# A replica refuses in time; this is for a request that finds none, which Ray Serve would let wait for ever.
PROXY_MARGIN_S = 5.0


@dataclass(frozen=True)
class RunningService:
    """A service that answers at `url` until `stop`."""

    url: str

    def stop(self) -> None:
        """Let the replicas finish what they have (at most `serve.drain_s`); end a Ray Serve that nobody else is on."""
        ray_serve.delete(APP_NAME)
        if not ray_serve.status().applications:
            ray_serve.shutdown()


def serve_export(
    export_dir: Path,
    settings: ServeSettings,
    ready: Callable[[str], None] = lambda url: print(f"listening on {url}, docs at {url}/docs", flush=True),
    blocking: bool = True,
) -> RunningService:
    """Serve one export folder and call `ready(url)` once it answers.

    With `blocking`, return after SIGTERM or SIGINT, drained; otherwise at once, and the caller stops it.

    Raises:
        UserError: not an export folder, a service runs on this Ray already, unusable tokens, port taken, too few CPUs
            or GPUs, or no answer in time.
    """
    check_exports(export_dir, settings)
    check_alone()
    digests = read_digests(settings.auth)
    check_port(settings)
    check_resources(settings)
    ray_serve.start(http_options=http_options(settings))
    service = RunningService(f"http://{reachable(settings.host)}:{settings.port}")
    try:
        ray_serve.run(build_app(export_dir.resolve(), settings, digests), name=APP_NAME, route_prefix="/")
        wait_until_ready(service.url)
    except BaseException:
        ray_serve.delete(APP_NAME, _blocking=False)  # what does not answer must not stand in the next one's way
        raise
    if not blocking:
        ready(service.url)
        return service
    with stop_signals() as stopped:
        ready(service.url)
        stopped.wait()
    service.stop()
    return service


def http_options(settings: ServeSettings) -> dict[str, Any]:
    """Return Ray Serve's options: where it listens, and when it gives up on a request that no replica answers."""
    patience = settings.limits.body_seconds + settings.request_timeout_s + PROXY_MARGIN_S
    return {"host": settings.host, "port": settings.port, "request_timeout_s": patience}


class stop_signals:
    """Within this context SIGTERM and SIGINT set the event instead of ending the process."""

    def __enter__(self) -> threading.Event:
        stopped = threading.Event()
        self.before = {s: signal.signal(s, lambda *_: stopped.set()) for s in (signal.SIGTERM, signal.SIGINT)}
        return stopped

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def reachable(host: str) -> str:
    """An address to call where the service listens on all interfaces."""
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host


def check_alone() -> None:
    """Refuse to start beside another service of ours: Ray Serve would put this one in its place, on its port."""
    if APP_NAME in ray_serve.status().applications:
        raise UserError(
            "this Ray serves an export already. Exchange it with `broadfast roll`, stop it, or start another Ray."
        )


def check_port(settings: ServeSettings) -> None:
    """Refuse a port that somebody else holds; Ray Serve would only say so in a log."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise UserError(f"serve.port: cannot listen on {where} ({error.strerror}). Choose another port.") from error


def check_resources(settings: ServeSettings) -> None:
    """Refuse a plan that the cluster can never place; Ray Serve would wait for ever."""
    have = ray.cluster_resources()
    for name, field, each in (
        ("CPU", "cpus_per_replica", settings.cpus_per_replica),
        ("GPU", "gpus_per_replica", settings.gpus_per_replica),
    ):
        need = each * settings.replicas.min
        if need > have.get(name, 0):
            raise UserError(
                f"serve.{field} x serve.replicas.min asks for {need:g} {name}, the cluster has"
                f" {have.get(name, 0):g}. Lower one of them or add nodes."
            )


def wait_until_ready(url: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Poll `/readyz` until it answers 200.

    Raises:
        UserError: it did not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise UserError(f"{url} did not become ready in {timeout_s:g} s ({error}). See Ray's logs.") from error
        time.sleep(0.2)


def score_once(
    url: str,
    query: str,
    products: Sequence[dict[str, Any]],
    explain: bool = False,
    timeout_s: float = 60.0,
    token: str | None = None,
) -> dict[str, Any]:
    """POST one query with its products to `/v1/score` and return the answer.

    Raises:
        UserError: the service refused; the message is its problem document's detail.
    """
    body = json.dumps({"query": query, "products": list(products), "explain": explain}).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(f"{url}/v1/score", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        detail = error.read().decode(errors="replace")
        raise UserError(f"{url} answered {error.code}: {detail[:500]}") from error
    except urllib.error.URLError as error:
        raise UserError(f"{url} does not answer ({error.reason}). Is the server running?") from error
