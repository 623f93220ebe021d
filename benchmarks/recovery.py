"""Kills a replica and rolls in an export under load, and measures the recovery and what the callers saw.

Two replicas run behind Ray Serve's own proxy and then behind HAProxy, with `CLIENTS` callers who wait for their
answers. A killed replica has recovered once two replicas are among those that report the service's metrics.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import ray
from contest.running import Contestant
from contest.weights import make_pairs_of_real_length, prepare
from load import start_generator
from ray.exceptions import RayError
from results import Figure, in_own_process, write_results
from safetensors.torch import load_file, save_file

from cluster.base.free_port import free_port
from cluster.base.ray_session import LOCAL_ENVIRONMENT
from cluster.base.stage_folder import write_json
from serve.config import Ingress, ReplicaSettings, ServeSettings
from serve.on_ray.proxy import ingress_environment
from serve.on_ray.rollout import roll_export, service_handle, states
from serve.on_ray.running_service import serve_export

CLIENTS = 8
LEAD_S = 3.0  # of load before the event
PATIENCE_S = 180.0
INGRESSES: tuple[Ingress, ...] = get_args(Ingress)
Row = dict[str, Any]


@contextmanager
def serving(export: Path, ingress: Ingress) -> Iterator[str]:
    """Run two replicas on a Ray of this process; yield the service's address."""
    port = free_port()
    replicas = ReplicaSettings(min=2, max=2)
    settings = ServeSettings(port=port, ingress=ingress, cpus_per_replica=1, replicas=replicas)
    ray.init(num_cpus=3, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
    try:
        service = serve_export(export, settings, ready=lambda url: None, blocking=False)
        yield service.url
        service.stop()
    finally:
        ray.shutdown()


def replicas() -> set[str]:
    """Return the replicas that say what they have loaded; an empty set if one that is gone was asked."""
    try:
        return {state.replica for state in states(service_handle())}
    except RayError:
        return set()


def wait_for_two(gone: str = "") -> None:
    """Wait until there are two replicas, not counting `gone`."""
    deadline = time.monotonic() + PATIENCE_S
    while len(found := replicas()) != 2 or any(gone.endswith(name) for name in found):
        assert time.monotonic() < deadline, f"still {found}"
        time.sleep(0.1)


def kill_one() -> None:
    """Kill a replica's process and wait until there are two again."""
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    victim = next(name for name in names if "SERVE_REPLICA" in name)
    ray.kill(ray.get_actor(victim, namespace="serve"))
    wait_for_two(victim)


def under_load(event: str, generator: Contestant, url: str, seconds: float, act: Callable[[], object]) -> Row:
    """Let something happen while callers ask; return how long it took, and how their requests ended."""
    with ThreadPoolExecutor(1) as pool:
        phase = pool.submit(generator.ask, url=f"{url}/v1/score", clients=CLIENTS, seconds=seconds)
        time.sleep(LEAD_S)
        start = time.perf_counter()
        act()
        took = time.perf_counter() - start
        said = phase.result()
    ends = {name: said[name] for name in ("good", "refused", "failed", "longest_gap_s")}
    return {"event": event, "took_s": took, **ends, "slowest_ms": max(said["latencies_ms"])}


def changed_copy(export: Path, folder: Path) -> Path:
    """Return a copy of the export in which one weight is changed, so that the service sees another model."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(export, folder)
    weights = load_file(folder / "model.safetensors")
    first = min(weights)
    weights[first] = weights[first] * 1.001
    save_file(weights, folder / "model.safetensors")
    return folder


def one_ingress(ingress: Ingress, kills: int, seconds: float) -> list[Row]:
    """Kill replicas and roll in exports behind one ingress, in this process."""
    pairs = make_pairs_of_real_length()
    folder = prepare(pairs)
    export = folder / "export"
    other = changed_copy(export, folder / "export-rolled-in")
    generator = start_generator(folder, pairs)
    with serving(export, ingress) as url:
        wait_for_two()
        generator.ask(url=f"{url}/v1/score", clients=CLIENTS, seconds=LEAD_S)  # warms up
        rows = [under_load("kill", generator, url, seconds, kill_one) for _ in range(kills)]
        for target in (other, export):
            rows.append(under_load("roll", generator, url, seconds, partial(roll_export, target)))
    generator.stop()
    return [{"ingress": ingress, **row} for row in rows]


def figures_of(rows: list[Row]) -> Iterator[Figure]:
    """Yield for each ingress the slowest recovery, the longest silence after a kill, and what a roll cost."""
    for ingress in INGRESSES:
        own = [row for row in rows if row["ingress"] == ingress]
        kills, rolls = ([row for row in own if row["event"] == event] for event in ("kill", "roll"))
        failed = sum(row["failed"] for row in kills)
        yield Figure(f"recovery_s_{ingress}", max(row["took_s"] for row in kills), "s until two replicas")
        yield Figure(f"silence_s_{ingress}", max(row["longest_gap_s"] for row in kills), "s without an answer")
        asked = sum(row[end] for row in kills for end in ("good", "refused", "failed"))
        yield Figure(f"failed_at_kills_{ingress}", failed, f"of {asked} requests")
        lost = sum(row["refused"] + row["failed"] for row in rolls)
        yield Figure(f"failed_at_rolls_{ingress}", lost, "requests", at_most=0)
        yield Figure(f"roll_s_{ingress}", max(row["took_s"] for row in rolls), "s until both have it")


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of one phase")
    parser.add_argument("--only", choices=INGRESSES, help=SUPPRESS)
    parser.add_argument("--told", type=Path, help=SUPPRESS)
    options = parser.parse_args()
    if options.only:
        write_json(options.told, one_ingress(options.only, options.kills, options.seconds))
        return
    rows: list[Row] = []
    for ingress in INGRESSES:  # Ray Serve takes its ingress from the environment when it is imported
        environment = {**os.environ, **LOCAL_ENVIRONMENT, **ingress_environment(ServeSettings(ingress=ingress))}
        rows += in_own_process(__file__, *sys.argv[1:], "--only", ingress, environment=environment)
    write_results("recovery", list(figures_of(rows)), rows)


if __name__ == "__main__":
    main()
