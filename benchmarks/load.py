"""Measures the service under load: Ray Serve on this machine, with a load generator in a process of its own.

The scorer in process and sentence-transformers behind a plain `@serve.batch` deployment take turns with it in the same
run. Capacity is what `CLIENTS` callers get who wait for their answers; the open loop then sends shares of it.
Generator, ingress and model share the machine's cores, and each row says how many of them the generator took.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import ray
from contest.contestant import THREADS
from contest.plain_serve import Plain
from contest.running import Contestant
from contest.weights import HELD_OUT, Pairs, make_pairs_of_real_length, prepare
from ray import serve as ray_serve
from results import Figure, write_results

from cluster.base.free_port import free_port
from cluster.base.ray_session import LOCAL_ENVIRONMENT
from serve.config import Ingress, ReplicaSettings, ServeSettings
from serve.on_ray.deployment import build_app
from serve.on_ray.proxy import ingress_environment
from serve.on_ray.running_service import wait_until_ready

PRODUCTS = 10
CLIENTS = 24  # requests at the same time while capacity is measured, nearly a full batch of the service
SHARES = (0.25, 0.5, 0.8, 1.0, 1.5, 3.0)
IN_PROCESS = 200  # pairs in one call of the scorer in process, as many as in a full batch of the service
Row = dict[str, Any]


def start_generator(folder: Path, pairs: Pairs) -> Contestant:
    """Start the load generator with requests of `PRODUCTS` held-out products each."""
    bodies = []
    for start in range(len(pairs) - HELD_OUT, len(pairs), PRODUCTS):
        asked = pairs[start : start + PRODUCTS]
        products = [{name: pair[name] for name in ("id", "title", "description")} for pair in asked]
        bodies.append(json.dumps({"query": asked[0]["query"], "products": products}))
    (folder / "bodies.json").write_text(json.dumps(bodies), encoding="utf-8")
    generator = Contestant.start("generator", "generator.py", str(folder / "bodies.json"))
    assert "ready" in generator.hear()
    return generator


@contextmanager
def serving(folder: Path, replicas: int) -> Iterator[tuple[str, str]]:
    """Run both applications on one Ray Serve, ours on so many replicas; yield their addresses, ours first."""
    port = free_port()
    among = ReplicaSettings(min=replicas, max=replicas)
    settings = ServeSettings(port=port, cpus_per_replica=THREADS / replicas, replicas=among)
    # Ray is told of more CPUs than there are, because the two models never work at the same time.
    ray.init(num_cpus=2 * THREADS + 1, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        plain = Plain.options(ray_actor_options={"num_cpus": THREADS}).bind(str(folder / "peer"), THREADS)
        ray_serve.run(plain, name="plain", route_prefix="/plain")
        ray_serve.run(build_app(folder / "export", settings), name="broadfast", route_prefix="/")
        wait_until_ready(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}/v1/score", f"http://127.0.0.1:{port}/plain"
    finally:
        ray_serve.shutdown()
        ray.shutdown()


def in_process(scorer: Contestant, pairs: Pairs, seconds: float) -> float:
    """Return the pairs per second of the scorer in process, over calls that take about `seconds` together."""
    starts = list(range(len(pairs) - HELD_OUT, len(pairs), IN_PROCESS))
    taken: list[float] = []
    while sum(taken) < seconds:
        taken += scorer.ask(time=starts[:2], size=IN_PROCESS)
        starts = starts[2:] + starts[:2]
    return IN_PROCESS * len(taken) / sum(taken)


def capacities(
    scorer: Contestant, generator: Contestant, urls: tuple[str, str], pairs: Pairs, seconds: float, rounds: int
) -> list[Row]:
    """Let scorer, service and peer take turns. The first round warms them up and does not count."""
    rows = []
    for round_ in range(-1, rounds):
        found = {"scorer": in_process(scorer, pairs, seconds / 2)}
        for name, url in zip(("service", "peer"), urls, strict=True):
            said = generator.ask(url=url, clients=CLIENTS, seconds=seconds if round_ >= 0 else 2.0)
            found[name] = PRODUCTS * said["good_per_s"]
            found.setdefault("generator", said["generator_cores"])
        if round_ >= 0:
            rows.append(found)
    return rows


def open_loop(generator: Contestant, url: str, capacity: float, seconds: float, rounds: int) -> list[Row]:
    """Send each share of `capacity` (requests/s) `rounds` times; the rounds of a share are one row."""
    said: dict[float, list[Row]] = {share: [] for share in SHARES}
    for round_ in range(rounds):
        for share in SHARES:
            said[share].append(generator.ask(url=url, rate=share * capacity, seconds=seconds, seed=round_))
    return [one_row(share, found, capacity) for share, found in said.items()]


def one_row(share: float, found: Sequence[Row], capacity: float) -> Row:
    """Return the rounds of a share as one row."""
    latencies = [ms for row in found for ms in row["latencies_ms"]]
    p50, p99 = (float(ms) for ms in np.percentile(latencies or [float("nan")], (50, 99)))
    sent = {"share_of_capacity": share, "requests_per_s": share * capacity}
    total = {name: sum(row[name] for row in found) for name in ("good", "refused", "failed")}
    goodput, cores = (statistics.mean(row[name] for row in found) for name in ("good_per_s", "generator_cores"))
    rates = {"good_per_s": goodput, "goodput_share": goodput / capacity, "p50_ms": p50, "p99_ms": p99}
    return sent | total | rates | {"generator_cores": cores}


def figures_of(turns: Sequence[Row], rows: Sequence[Row]) -> list[Figure]:
    """Return the figures with goals, and how fast the machine was."""
    over_scorer = statistics.median(turn["service"] / turn["scorer"] for turn in turns)
    over_peer = statistics.median(turn["service"] / turn["peer"] for turn in turns)
    by_share = {row["share_of_capacity"]: row for row in rows}
    half, triple = by_share[0.5]["p99_ms"] / by_share[0.5]["p50_ms"], by_share[3.0]["goodput_share"]
    plain = "times sentence-transformers' pairs/s behind @serve.batch"
    figures = [
        Figure("http_over_scorer", over_scorer, "of the pairs/s in process", at_least=0.85),
        Figure("http_over_sentence_transformers_serve", over_peer, plain, at_least=2.5),
        Figure("p99_over_p50_at_half_load", half, "ratio of latencies", at_most=4),
        Figure("goodput_at_triple_load", triple, "of capacity", at_least=0.9),
    ]
    for name, unit in (("scorer", "pairs/s"), ("service", "pairs/s"), ("peer", "pairs/s"), ("generator", "cores")):
        figures.append(Figure(f"{name}_median", statistics.median(turn[name] for turn in turns), unit))
    return figures


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of one phase")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ingress", choices=get_args(Ingress), default="haproxy")
    parser.add_argument("--replicas", type=int, default=THREADS, help="replicas among which the cores are divided")
    options = parser.parse_args()
    # The environment in which `broadfast serve` starts Ray.
    environment = LOCAL_ENVIRONMENT | ingress_environment(ServeSettings(ingress=options.ingress))
    if not environment.items() <= os.environ.items():  # Ray Serve was imported without it
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment})
    pairs = make_pairs_of_real_length()
    folder = prepare(pairs)
    scorer = Contestant.start("scorer", "contestant.py", "scorer, products kept", str(folder))
    assert "ready" in scorer.hear()
    generator = start_generator(folder, pairs)
    with serving(folder, options.replicas) as urls:
        turns = capacities(scorer, generator, urls, pairs, options.seconds, options.rounds + 1)
        capacity = statistics.median(turn["service"] for turn in turns) / PRODUCTS
        rows = open_loop(generator, urls[0], capacity, options.seconds, options.rounds)
    scorer.stop()
    generator.stop()
    write_results("load", figures_of(turns, rows), rows)


if __name__ == "__main__":
    main()
