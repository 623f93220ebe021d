"""Every private part of Ray that this project rests on; its test fails loudly at an upgrade."""

from __future__ import annotations

from typing import Any


def serve_client() -> Any:
    """Return the client of the Ray Serve that runs on the connected Ray; None where none does.

    Its details say whether a Serve config owns an application, which no public call of Python tells.
    """
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False)


def start_handle(handle: Any) -> None:
    """Let a deployment handle route from a thread without an event loop.

    Under HAProxy's environment a handle looks for its caller's event loop, and a command has none.
    """
    if not handle.is_initialized:
        handle._init(_run_router_in_separate_loop=True)


def with_version(deployment: Any, version: str) -> Any:
    """Return the deployment under a version of our own: Ray Serve keeps replicas while it stays the same."""
    return deployment.options(version=version, _internal=True)


def head_address(address: str) -> str | None:
    """Return host and port of the head that `ray.init(address)` would connect to, or None where it starts a local Ray.

    Raises:
        ConnectionError: "auto" finds none.
        ValueError: it is not HOST:PORT.
    """
    from ray._private.services import canonicalize_bootstrap_address

    return canonicalize_bootstrap_address(address)


def training_failed_error() -> type[Exception]:
    """Return what a Ray Train run raises when its workers fail; it has no public name yet."""
    from ray.train.v2.api.exceptions import TrainingFailedError

    return TrainingFailedError


def local_gpus() -> int:
    """Return how many GPUs Ray would find on this machine, without starting it."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    return int(manager.get_current_node_num_accelerators()) if manager else 0
