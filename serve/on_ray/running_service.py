"""Starting and stopping the service on a Ray that the caller has connected, and sending it one request."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve as ray_serve

from cluster.base.errors import UserError
from cluster.base.progress import console, waiting_for
from cluster.base.ray_internals import serve_client
from cluster.base.ray_session import OWN_ADDRESSES
from serve.config import ServeSettings
from serve.experiments.experiment_service import check_exports
from serve.http.bearer_tokens import read_tokens
from serve.on_ray.deployment import APP_NAME, build_app

START_TIMEOUT_S = 180.0
# A replica refuses in time. This is for a request that finds no replica, which would otherwise wait for ever.
PROXY_MARGIN_S = 5.0


@dataclass(frozen=True)
class RunningService:
    """A service that answers at `url` until `stop`."""

    url: str

    def stop(self) -> None:
        """Let the replicas finish, for at most `serve.drain_s`, and end Ray Serve if nothing else uses it."""
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

    With `blocking`, return after SIGTERM or SIGINT once all requests are answered; otherwise return at once, and the
    caller stops the service.

    Raises:
        UserError: the folder is not an export, a service runs on this Ray already, the tokens are unusable, the port
            is taken, there are too few CPUs or GPUs, or the service did not answer in time.
    """
    check_exports(export_dir, settings)
    check_alone()
    tokens = read_tokens(settings.auth)
    check_resources(settings)
    service = RunningService(start_ingress(settings))
    try:
        with waiting_for("the service to start and its replicas to load the student", how_far):
            ray_serve.run(build_app(export_dir.resolve(), settings, tokens), name=APP_NAME, route_prefix="/")
            wait_until_ready(service.url)
    except BaseException:
        ray_serve.delete(APP_NAME, _blocking=False)  # a service that does not answer must not block the next one
        raise
    if not blocking:
        ready(service.url)
        return service
    with stop_signals() as stopped:
        ready(service.url)
        stopped.wait()
    service.stop()
    return service


def start_ingress(settings: ServeSettings) -> str:
    """Start Ray Serve, or join the one that runs on this Ray for others, and return the address to call.

    Raises:
        UserError: the port is taken, or another application of that Ray Serve answers everything.
    """
    if (other := serve_client()) is None:
        check_port(settings)
        ray_serve.start(http_options=http_options(settings))
        return address_of(settings.host, settings.port)
    for name, application in other.get_serve_details()["applications"].items():
        if application["route_prefix"] == "/":
            raise UserError(f"the application {name!r} on this Ray Serve answers at / already. Start another Ray.")
    host, port = other.http_config.host, other.http_config.port
    if (host, port) != (settings.host, settings.port):
        said = (
            f"another application has started Ray Serve here, so the service listens where that does, on {host}:{port}"
        )
        console().print(said, highlight=False)
    return address_of(host, port)


def how_far() -> str:
    """Return what the replicas are doing while the service starts."""
    application = ray_serve.status().applications.get(APP_NAME)
    if application is None or not application.deployments:
        return "Ray Serve itself starts"
    (deployment,) = application.deployments.values()
    states = ", ".join(f"{count} {state.lower()}" for state, count in deployment.replica_states.items())
    said = deployment.message or "they import torch, load the student and try it out before they run"
    return f"replicas: {states or 'none yet'}; {said}"


def http_options(settings: ServeSettings) -> dict[str, Any]:
    """Return Ray Serve's options: where it listens, and when it gives up on a request that no replica answers."""
    patience = settings.limits.body_seconds + settings.request_timeout_s + PROXY_MARGIN_S
    return {"host": settings.host, "port": settings.port, "request_timeout_s": patience}


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set, instead of ending the process, while the block runs."""
    stopped = threading.Event()
    before = {s: signal.signal(s, lambda *_: stopped.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def address_of(host: str, port: int) -> str:
    """Return the address to call; a service on all interfaces is called on this machine's own."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_alone() -> None:
    """Refuse to start beside another broadfast service, because Ray Serve would replace that one."""
    if APP_NAME in ray_serve.status().applications:
        raise UserError(
            "this Ray serves an export already. Exchange it with `broadfast roll`, stop it, or start another Ray."
        )


def check_port(settings: ServeSettings) -> None:
    """Refuse a port that is taken; Ray Serve would only say so in a log."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise UserError(f"serve.port: cannot listen on {where} ({error.strerror}). Choose another port.") from error


def check_resources(settings: ServeSettings) -> None:
    """Refuse replicas that the cluster can never hold, for which Ray Serve would wait for ever."""
    have = ray.cluster_resources()
    for kind in ("CPU", "GPU"):
        field = f"{kind.lower()}s_per_replica"
        need, there = getattr(settings, field) * settings.replicas.min, have.get(kind, 0)
        if need > there:
            raise UserError(
                f"serve.{field} x serve.replicas.min asks for {need:g} {kind}, the cluster has {there:g}."
                " Lower one of them or add nodes."
            )


def wait_until_ready(url: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Poll `/readyz` until it answers 200.

    Raises:
        UserError: it did not do so within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    with client_of(url, 5) as client:
        while True:
            try:
                if client.get(f"{url}/readyz").raise_for_status():
                    return
            except httpx.HTTPError as error:
                if time.monotonic() > deadline:
                    why = f"{url} did not become ready in {timeout_s:g} s ({error}). See Ray's logs."
                    raise UserError(why) from error
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

    Where the service asks to come back later, this does so until `timeout_s` have passed.

    Raises:
        UserError: the service refused, which the message explains, or it does not answer.
    """
    body = {"query": query, "products": list(products), "explain": explain}
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    deadline = time.monotonic() + timeout_s
    with client_of(url, timeout_s) as client:
        while True:
            try:
                answer = client.post(f"{url}/v1/score", json=body, headers=headers)
            except httpx.HTTPError as error:
                raise UserError(f"{url} does not answer ({error}). Is the server running?") from error
            later_s = float(answer.headers.get("Retry-After", "inf"))
            if answer.status_code != 503 or time.monotonic() + later_s > deadline:
                break
            time.sleep(later_s)
    if answer.is_error:
        raise UserError(f"{url} answered {answer.status_code}: {answer.text[:500]}")
    return answer.json()


def client_of(url: str, timeout_s: float) -> httpx.Client:
    """Return a client for the address; a proxy of the environment is not asked for what is on this machine."""
    return httpx.Client(timeout=timeout_s, trust_env=httpx.URL(url).host not in OWN_ADDRESSES)
