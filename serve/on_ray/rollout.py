"""Rolling a new export into a running service: either every replica loads it, or all return to the one before."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import APIType

from cluster.base.errors import UserError
from cluster.base.ray_internals import serve_client, start_handle
from serve.config import ServeSettings
from serve.experiments.experiment_service import check_exports
from serve.on_ray.deployment import APP_NAME, DEPLOYMENT, ReplicaState, build_app

Handle = DeploymentHandle[Any]
ANSWER_TIMEOUT_S, POLL_S = 30.0, 0.5


def roll_export(export_dir: Path, timeout_s: float = 600.0, allow_change: bool = False) -> list[str]:
    """Make the service on the connected Ray answer with another export, and return the names of its replicas.

    Each replica loads the export beside the one that answers, and scores with it once before it takes over, so no
    request fails or waits. The settings stay. Where one replica refuses the export, all return to the one before.

    Args:
        allow_change: also where its labels or perspectives are others, or where it lacks verdicts or an index.

    Raises:
        UserError: no service runs here, a Serve config owns it, the folder is not an export or answers already, or a
            replica refused it or did not load it in time.
    """
    handle, client = service_handle(), serve_client()
    assert client is not None, "a handle needs a client"
    check_ours(client.get_serve_details())
    settings, tokens = handle.deployed.remote().result(timeout_s=ANSWER_TIMEOUT_S)
    export_dir = export_dir.resolve()
    check_exports(export_dir, settings)
    found = states(handle)
    others = [state.export_dir for state in found if state.export_dir != str(export_dir)]
    if not others and not any(state.loading or state.refused for state in found):
        raise UserError(f"the service answers with {export_dir} already. Copy a new export beside it, not over it.")
    before = Path(others[0] if others else export_dir)
    try:
        ray_serve.run(build_app(export_dir, settings, tokens, allow_change), name=APP_NAME, route_prefix="/")
        return [state.replica for state in until_loaded(handle, export_dir, timeout_s)]
    except BaseException as error:  # also after Ctrl-C, so that all replicas answer with the same export
        ray_serve.run(build_app(before, settings, tokens, allow_change), name=APP_NAME, route_prefix="/")
        if not isinstance(error, Exception):
            raise
        with suppress(UserError):  # the first error is the one to report
            until_loaded(handle, before, timeout_s)
        raise UserError(f"{export_dir} was not rolled in, so {before} continues to answer: {error}") from error


def running_export() -> tuple[ServeSettings, Path]:
    """Return the settings of the service on the connected Ray, and the export that answers there.

    Raises:
        UserError: no service runs on the connected Ray.
    """
    handle = service_handle()
    settings, _ = handle.deployed.remote().result(timeout_s=ANSWER_TIMEOUT_S)
    return settings, Path(states(handle)[0].export_dir)


def service_handle() -> Handle:
    """Return the handle of the service's deployment.

    Raises:
        UserError: no service runs on the connected Ray.
    """
    try:
        handle = ray_serve.get_deployment_handle(DEPLOYMENT, APP_NAME)
        start_handle(handle)
        return handle
    except RayServeException as error:
        raise UserError(
            "no broadfast service runs on this Ray. Start one with broadfast serve, or name its Ray with --address."
        ) from error


def check_ours(details: Mapping[str, Any]) -> None:
    """Refuse a service that comes from a Serve config, because whatever applies it, such as KubeRay, would undo this.

    Args:
        details: what Ray Serve says about its applications.
    """
    if details["applications"][APP_NAME]["source"] == APIType.DECLARATIVE:
        raise UserError(
            "this service comes from a Serve config, which would undo a roll. Change export_dir there (on KubeRay in "
            "the RayService's serveConfigV2) and apply it: Ray Serve then replaces one replica after the other."
        )


def states(handle: Handle) -> Sequence[ReplicaState]:
    """Ask every replica what it has loaded."""
    return handle.broadcast("state").results(timeout_s=ANSWER_TIMEOUT_S)


def until_loaded(handle: Handle, export_dir: Path, timeout_s: float) -> Sequence[ReplicaState]:
    """Wait until all replicas answer with `export_dir`.

    Raises:
        UserError: a replica has refused it, or `timeout_s` have passed.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            found = states(handle)
        except (RayError, RayServeException, TimeoutError):  # one has gone; that which replaces it loads the new export
            found = ()
        refused = [f"{state.replica}: {state.refused}" for state in found if state.refused]
        if refused:
            raise UserError("; ".join(refused))
        if found and all(state.export_dir == str(export_dir) and not state.loading for state in found):
            return found
        if time.monotonic() > deadline:
            raise UserError(f"not every replica has loaded it within {timeout_s:g} s")
        time.sleep(POLL_S)
