"""Workers and drivers of a generation killed at random moments: nothing is lost, nothing finished is asked again."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from cluster.base.stage_folder import MANIFEST, read_json
from tests.helpers.generation_run import (
    PATIENCE_S,
    PERSPECTIVES,
    STAGE,
    Driver,
    asked,
    check_exactly_once,
    parts,
    workers,
    write_pairs,
    written,
)

PAIRS = 500
KILLS, OF_DRIVERS = 10, 2
# Two workers, each with at most 2 files x 4 batches x 2 pairs x 3 perspectives in flight.
ENGINE = {"delay_s": 0.7, "replicas": {"min": 2, "max": 2, "pairs_per_task": 2, "flush_rows": 8}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 * 2**20})
    yield made
    made.shutdown()


def in_flight(run_dir: Path) -> set[str]:
    """Return the requests that were asked and are not on disk."""
    return set(asked(run_dir)) - written(run_dir)


def kill_worker(cluster: Cluster, draw: random.Random) -> None:
    victim = draw.choice(workers(cluster.head_node))
    victim.kill()
    victim.wait(PATIENCE_S)


def kill_driver(cluster: Cluster, driver: Driver) -> None:
    """Kill the driver; Ray then ends its workers, which may still write what they have."""
    orphans = workers(cluster.head_node)
    driver.kill()
    psutil.wait_procs(orphans, timeout=PATIENCE_S)


def test_ten_kills_at_random_moments(cluster: Cluster, tmp_path: Path) -> None:
    seed = time.time_ns() % 10**6
    print(f"seed {seed}")
    draw = random.Random(seed)
    victims = ["driver"] * OF_DRIVERS + ["worker"] * (KILLS - OF_DRIVERS)
    draw.shuffle(victims)
    write_pairs(tmp_path, PAIRS)
    may_be_asked_again: Counter[str] = Counter()
    driver = Driver(tmp_path, cluster.address, ENGINE)
    try:
        for victim in victims:
            before = len(parts(tmp_path))
            driver.wait(lambda before=before: len(parts(tmp_path)) > before and workers(cluster.head_node))  # type: ignore[misc]
            time.sleep(draw.uniform(0, 0.5))
            if victim == "worker":
                kill_worker(cluster, draw)
            else:
                kill_driver(cluster, driver)
                may_be_asked_again.update(in_flight(tmp_path))
                driver = Driver(tmp_path, cluster.address, ENGINE)
                continue
            may_be_asked_again.update(in_flight(tmp_path))
        said = driver.end()
    finally:
        driver.kill()
    assert driver.process.returncode == 0, said
    check_exactly_once(tmp_path)
    times = asked(tmp_path)
    assert len(times) == PAIRS * len(PERSPECTIVES)
    again = Counter({key: count - 1 for key, count in times.items() if count > 1})
    assert again and not again - may_be_asked_again
    manifest = read_json(tmp_path / STAGE / MANIFEST)
    assert manifest["figures"]["asked"] < manifest["counts"]["requested"]
