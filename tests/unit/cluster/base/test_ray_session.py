"""Connecting to Ray: an address where none answers is refused at once, and what a run rests on is on its own node."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import ray

from cluster.base.errors import UserError
from cluster.base.free_port import free_port
from cluster.base.placement import on_this_node
from cluster.base.ray_session import GREETING, _start, check_head, past_proxies, ray_session
from cluster.config import ClusterSettings

SETTINGS_FRAME = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("", 0)) as server:
        yield server


def address_of(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def answer(server: socket.socket, said: bytes) -> list[bytes]:
    """Let the server answer one caller; return the list that gets what the caller said."""
    heard: list[bytes] = []

    def serve() -> None:
        caller, _ = server.accept()
        with caller:
            heard.append(caller.recv(len(GREETING), socket.MSG_WAITALL))
            caller.sendall(said)

    threading.Thread(target=serve, daemon=True).start()
    return heard


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_closed_port_is_refused_by_the_name_of_its_setting(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{scheme}127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever tests before this one started
    with pytest.raises(UserError, match=f"^RAY_ADDRESS '{address}': no Ray cluster answers there .*refused"):
        ray_session(ClusterSettings()).__enter__()
    with pytest.raises(UserError, match=r"^cluster\.address .*Check that its head runs"):
        ray_session(ClusterSettings(address=address)).__enter__()


def test_a_port_that_says_nothing_is_given_up_soon(listener: socket.socket) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"no Ray cluster answers there \(timed out\)"):
        check_head(address_of(listener), "RAY_ADDRESS")
    assert time.monotonic() - began < 30


def test_what_is_no_ray_is_refused_and_what_greets_like_one_is_not(listener: socket.socket) -> None:
    answer(listener, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(UserError, match="what listens there is no Ray head"):
        check_head(address_of(listener), "RAY_ADDRESS")
    heard = answer(listener, SETTINGS_FRAME)
    check_head(address_of(listener), "RAY_ADDRESS")
    assert heard == [GREETING]


def test_an_address_without_a_port_is_refused() -> None:
    for address in ("ray://head", "head"):
        with pytest.raises(UserError, match=f"RAY_ADDRESS '{address}': no Ray cluster answers there"):
            check_head(address, "RAY_ADDRESS")


def test_helpers_of_a_run_are_on_the_node_of_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    here = "ab" * 28
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: here))
    options = on_this_node()
    where = options["scheduling_strategy"]
    assert (options["num_cpus"], where.node_id, where.soft) == (0, here, False)


def test_a_local_ray_that_came_too_late_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []

    def late(**_: object) -> None:
        tried.append(True)
        if len(tried) < 3:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", late)
    _start({})
    assert len(tried) == 3
    with pytest.raises(UserError, match="Ray did not start within 30 s, 2 times"):
        tried.clear()
        _start({}, tries=2)


def test_what_else_ends_the_start_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise ConnectionError("no shared memory")

    monkeypatch.setattr(ray, "init", broken)
    with pytest.raises(ConnectionError, match="no shared memory"):
        _start({})


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", "127.0.0.1,localhost,::1"), ("shop.example, localhost", "shop.example,localhost,127.0.0.1,::1")],
)
def test_no_proxy_is_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch, given: str, expected: str) -> None:
    monkeypatch.setenv("no_proxy", given)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert past_proxies() == {"no_proxy": expected, "NO_PROXY": expected}
    monkeypatch.setenv("no_proxy", "*")
    assert past_proxies() == {}
