"""Connecting to Ray: a cluster by its address, or a local Ray of bounded size."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.config import ClusterSettings
from cluster.errors import UserError

QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}


@contextmanager
def ray_session(settings: ClusterSettings) -> Iterator[dict[str, float]]:
    """Connect for the length of the block and yield the cluster's resources.

    A Ray that is already connected (a submitted job, a test) is used and left running.

    Raises:
        UserError: no cluster answers at `cluster.address`.
    """
    import ray

    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    os.environ.update({k: os.environ.get(k, v) for k, v in QUIET.items()})
    try:
        ray.init(**init_arguments(settings))
    except ConnectionError as error:
        raise UserError(f"cluster.address {settings.address!r}: no Ray cluster answers there ({error}).") from error
    _bound_ray_data()
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def init_arguments(settings: ClusterSettings) -> dict[str, Any]:
    """Return the arguments of `ray.init`: the address alone, or the size of a local Ray."""
    shared: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    address = settings.address or os.environ.get("RAY_ADDRESS")
    if address:
        return shared | {"address": address}
    return shared | {
        "address": "local",
        "num_cpus": settings.num_cpus,
        "object_store_memory": settings.object_store_mb * 2**20,
        "include_dashboard": False,
    }


def stream_parquet(path: Path, columns: list[str] | None = None) -> Any:
    """Return a Ray Data set over a parquet file or folder, for actors that may hold every CPU.

    Its read tasks reserve no CPU: they do little, and where actors hold all CPUs they would wait for ever.
    """
    import ray.data

    return ray.data.read_parquet(str(path.resolve()), columns=columns, ray_remote_args={"num_cpus": 0})


def _bound_ray_data() -> None:
    """Keep Ray Data quiet: this project shows its own progress."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
