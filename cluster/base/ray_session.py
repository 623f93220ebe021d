"""Connecting to Ray: a cluster by its address, or a local Ray of bounded size."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.base.errors import UserError
from cluster.config import ClusterSettings

if TYPE_CHECKING:
    from cluster.base.shared_folder import Store

PIECE_ROWS = 4096
BLOCK_BYTES = 4 * 2**20  # an actor is handed a block at a time: of large ones there are fewer than actors
READERS = 2  # that read at a time: what reserves no CPU is not bounded by Ray, which starts a process for each
# Waiting OpenMP threads spin for a tenth of a millisecond only: longer stalls all others where cores are shared.
# Large blocks are kept by malloc: training frees and takes the same ones at every step, at a page fault each.
# Workers are as urgent as Ray's own daemons: by Ray's default of 15 each of these stalls a model's threads.
LOCAL_ENVIRONMENT = {
    "GOMP_SPINCOUNT": "30000",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "RAY_worker_niceness": "0",
}
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
    os.environ.update({k: os.environ.get(k, v) for k, v in (QUIET | LOCAL_ENVIRONMENT).items()})
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


def stream_parquet(path: Path | Store, columns: list[str] | None = None) -> Any:
    """Return a Ray Data set over a parquet file, a folder or a store, for actors that may hold every CPU.

    Ray's own reader reserves a CPU to list files and would wait for ever where actors hold all of them;
    this one reserves none, and yields a file piece by piece, in blocks small enough to keep many actors at work.
    """
    import ray.data

    from cluster.base.shared_folder import Store

    if isinstance(path, Path) and path.is_file():
        store, names = Store.at(path.parent), [path.name]
    else:
        store = path if isinstance(path, Store) else Store.at(path)
        names = [entry.name for entry in store.files(".parquet")]
    items = [{"file": name} for name in names]

    def pieces(batch: dict[str, Any]) -> Iterator[Any]:
        import pyarrow as pa

        for name in batch["file"]:
            for piece in store.batches(name, columns, PIECE_ROWS):
                yield pa.Table.from_batches([piece])

    ray.data.DataContext.get_current().target_max_block_size = BLOCK_BYTES
    listed = ray.data.from_items(items, override_num_blocks=len(items))
    readers = ray.data.TaskPoolStrategy(size=min(READERS, max(1, len(items))))
    return listed.map_batches(pieces, batch_size=1, num_cpus=0, compute=readers)


def _bound_ray_data() -> None:
    """Keep Ray Data quiet: this project shows its own progress."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
