"""Connects to Ray, either to a cluster by its address or to a local Ray of bounded size."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.base.errors import UserError
from cluster.base.progress import console
from cluster.base.ray_internals import head_address
from cluster.config import ClusterSettings

if TYPE_CHECKING:
    from cluster.base.shared_folder import SharedFolder

PIECE_ROWS = 4096
BLOCK_BYTES = 4 * 2**20  # an actor gets a block at a time; of larger blocks there may be fewer than actors
READERS = 2  # at a time; Ray does not bound tasks that reserve no CPU, and starts a process for each
# Waiting OpenMP threads spin for only a tenth of a millisecond; more would stall all others where cores are shared.
# Malloc keeps large blocks, because training frees and takes the same ones at every step, with page faults each time.
# Workers are as urgent as Ray's own daemons; with Ray's default niceness of 15, each daemon stalls a model's threads.
LOCAL_ENVIRONMENT = {
    "GOMP_SPINCOUNT": "30000",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "RAY_worker_niceness": "0",
}
# Both sides of an HTTP/2 connection, on which gRPC rests, begin with a settings frame (RFC 9113, section 3.4).
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
FRAME_HEADER, SETTINGS_FRAME = 9, 4
PATIENCE_S = 8.0
LATE = "timed out during startup"  # what Ray says of a node whose daemons came too late
OWN_ADDRESSES = ("127.0.0.1", "localhost", "::1")  # of this machine, which a proxy of the environment cannot reach
QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}


@contextmanager
def ray_session(settings: ClusterSettings) -> Iterator[list[dict[str, float]]]:
    """Connect while the block runs, and yield what each node has, by Ray's names of resources.

    A Ray that is already connected, as in a submitted job or a test, is used and left running.

    Raises:
        UserError: no cluster answers at `cluster.address`.
    """
    import ray
    import ray.data

    if ray.is_initialized():
        yield _nodes()
        return
    os.environ.update({k: os.environ.get(k, v) for k, v in (QUIET | LOCAL_ENVIRONMENT).items()})
    os.environ.update(past_proxies())
    if address := ray_address(settings):
        check_head(address, "cluster.address" if settings.address else "RAY_ADDRESS")
    _start(init_arguments(settings))
    context = ray.data.DataContext.get_current()  # this project shows its own progress
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        yield _nodes()
    finally:
        ray.shutdown()


def _start(arguments: dict[str, Any], tries: int = 3) -> None:
    """Connect, again if a local Ray's daemons took longer than the 30 s that Ray gives them, as on a busy machine.

    Raises:
        UserError: they took longer each time.
    """
    import ray

    for left in reversed(range(tries)):
        try:
            ray.init(**arguments)
            return
        except Exception as error:  # Ray raises no other kind here
            if LATE not in str(error):
                raise
            if not left:
                raise UserError(
                    f"Ray did not start within 30 s, {tries} times. Other work may hold all cores of this machine: "
                    "wait for it, or end it, and run the same command again."
                ) from error
        console().print("Ray did not start within 30 s, as on a busy machine. Trying again.", style="yellow")


def past_proxies() -> dict[str, str]:
    """Return the variables that keep every client of this process and its workers from asking a proxy for this machine.

    Such a client polls the service, speaks to an engine behind an address, or is Ray's own.
    """
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if given.strip() == "*":
        return {}
    names = dict.fromkeys([*filter(None, (name.strip() for name in given.split(","))), *OWN_ADDRESSES])
    return dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(names))


def _nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def ray_address(settings: ClusterSettings) -> str | None:
    """Return the address of the cluster that is used, or None where a local Ray starts on this machine."""
    return settings.address or os.environ.get("RAY_ADDRESS")


def check_head(address: str, named: str) -> None:
    """Check that a Ray answers at an address, for which `ray.init` itself would wait in silence for minutes.

    Args:
        named: the setting that holds the address.

    Raises:
        UserError: nothing answers there, or something that is no Ray.
    """
    try:
        found = address.removeprefix("ray://") if "://" in address else head_address(address)
        if found is not None:
            _greet(found)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{named} {address!r}: no Ray cluster answers there ({error}). Check that its head runs (`ray status` on "
            "it) and that its port can be reached from here, or leave the address out for a local Ray."
        ) from error


def _greet(found: str) -> None:
    """Connect to HOST:PORT and wait until it greets as a gRPC server does.

    Raises:
        OSError: nobody greets within the time.
        ValueError: this is no HOST:PORT.
    """
    host, _, port = found.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):  # a TLS handshake comes first
            return
        connection.sendall(GREETING)
        said = connection.recv(FRAME_HEADER, socket.MSG_WAITALL)
    if len(said) < FRAME_HEADER or said[3] != SETTINGS_FRAME:
        raise ConnectionError("what listens there is no Ray head")


def init_arguments(settings: ClusterSettings) -> dict[str, Any]:
    """Return the arguments of `ray.init`: the address alone, or the size of a local Ray."""
    shared: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    if address := ray_address(settings):
        return shared | {"address": address}
    return shared | {
        "address": "local",
        "num_cpus": settings.num_cpus,
        "object_store_memory": settings.object_store_mb * 2**20,
        "include_dashboard": False,
    }


def stream_parquet(path: Path | SharedFolder, columns: list[str] | None = None) -> Any:
    """Return a Ray Data set over a parquet file or a folder of them, for actors that may hold every CPU.

    Ray's own reader reserves a CPU to list files, and would wait for ever where actors hold all of them. This one
    reserves none, and yields a file piece by piece, in blocks that are small enough to keep many actors busy.
    """
    import ray.data

    from cluster.base.shared_folder import SharedFolder

    if isinstance(path, Path) and path.is_file():
        folder, names = SharedFolder.at(path.parent), [path.name]
    else:
        folder = path if isinstance(path, SharedFolder) else SharedFolder.at(path)
        names = [entry.name for entry in folder.files(".parquet")]
    items = [{"file": name} for name in names]

    def pieces(batch: dict[str, Any]) -> Iterator[Any]:
        import pyarrow as pa

        for name in batch["file"]:
            for piece in folder.batches(name, columns, PIECE_ROWS):
                yield pa.Table.from_batches([piece])

    ray.data.DataContext.get_current().target_max_block_size = BLOCK_BYTES
    listed = ray.data.from_items(items, override_num_blocks=len(items))
    readers = ray.data.TaskPoolStrategy(size=min(READERS, max(1, len(items))))
    return listed.map_batches(pieces, batch_size=1, num_cpus=0, compute=readers)
