"""A Ray of several nodes that leave and join while a generation runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.helpers.generation_run import (
    PATIENCE_S,
    Driver,
    asked,
    check_exactly_once,
    parts,
    workers,
    write_pairs,
    written,
)

PAIRS = 250
ENGINE = {"delay_s": 1.5, "replicas": {"min": 1, "max": 2, "pairs_per_task": 2, "flush_rows": 4}}
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that takes no work; tests add nodes of one CPU each, room for one worker."""
    made = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0})
    yield made
    made.shutdown()


def test_a_node_joins_and_another_leaves_and_is_replaced(cluster: Cluster, tmp_path: Path) -> None:
    write_pairs(tmp_path, PAIRS)
    first = cluster.add_node(**NODE)
    driver = Driver(tmp_path, cluster.address, ENGINE)
    try:
        driver.wait(lambda: len(parts(tmp_path)) > 2)
        second = cluster.add_node(**NODE)
        driver.wait(lambda: len({part.name.split("-")[0] for part in parts(tmp_path)}) == 2 and bool(workers(second)))
        leaving, on_disk = workers(first), written(tmp_path)
        cluster.remove_node(first, allow_graceful=False)
        psutil.wait_procs(leaving, timeout=PATIENCE_S)
        in_flight = set(asked(tmp_path)) - on_disk
        cluster.add_node(**NODE)  # as an autoscaler replaces it: the requests that it had been handed wait for that
        said = driver.end()
    finally:
        driver.kill()
    assert driver.process.returncode == 0, said
    check_exactly_once(tmp_path)
    again = {key for key, count in asked(tmp_path).items() if count > 1}
    assert again <= in_flight and not again & on_disk
