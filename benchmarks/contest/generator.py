"""The load generator, one process that sends prepared request bodies in an open or a closed loop.

It is called as `generator.py BODIES`; commands and answers are lines of JSON. In an open loop, requests leave at random
times (a Poisson process) whether or not earlier ones were answered, and latencies count from these times. It shares
the machine's cores with the service, so each answer says how much processor time it took.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp

TIMEOUT_S = 20.0


@dataclass
class Count:
    """The answers of one phase: when good ones came and how long they took, and how many others there were."""

    came: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    refused: int = 0
    failed: int = 0


async def ask(session: aiohttp.ClientSession, url: str, body: bytes, count: Count, due: float) -> None:
    """Send one request and count its answer; `due` is the time at which it should leave."""
    try:
        async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
            await answer.read()
            status = answer.status
    except (aiohttp.ClientError, TimeoutError):
        count.failed += 1
        return
    now = time.perf_counter()
    if status == 200:
        count.came.append(now)
        count.latencies_ms.append(1000 * (now - due))
    else:
        count.refused += status == 503
        count.failed += status != 503


async def closed(session: aiohttp.ClientSession, command: dict[str, Any], bodies: list[bytes], count: Count) -> None:
    """Keep `clients` requests waiting for answers until the time is up."""
    end = time.perf_counter() + command["seconds"]
    turn = iter(range(10**9))

    async def client() -> None:
        while (now := time.perf_counter()) < end:
            await ask(session, command["url"], bodies[next(turn) % len(bodies)], count, now)

    await asyncio.gather(*(client() for _ in range(command["clients"])))


async def opened(session: aiohttp.ClientSession, command: dict[str, Any], bodies: list[bytes], count: Count) -> None:
    """Send `rate` requests per second, then wait for the last answers."""
    rng, start = random.Random(command["seed"]), time.perf_counter()
    due, tasks = start, []
    while (due := due + rng.expovariate(command["rate"])) < start + command["seconds"]:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        body = bodies[len(tasks) % len(bodies)]
        tasks.append(asyncio.create_task(ask(session, command["url"], body, count, due)))
    await asyncio.gather(*tasks)


async def run(command: dict[str, Any], bodies: list[bytes]) -> dict[str, Any]:
    """Run one phase. `good_per_s` counts only answers that came before its end."""
    count, start, cpu = Count(), time.perf_counter(), time.process_time()
    limits = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=limits) as session:
        await (opened if "rate" in command else closed)(session, command, bodies, count)
    took, in_time = time.perf_counter() - start, sum(came <= start + command["seconds"] for came in count.came)
    return {
        "good": len(count.came),
        "refused": count.refused,
        "failed": count.failed,
        "good_per_s": in_time / command["seconds"],
        "latencies_ms": count.latencies_ms,
        "longest_gap_s": max((after - before for before, after in pairwise(sorted(count.came))), default=took),
        "generator_cores": (time.process_time() - cpu) / took,
    }


def main() -> None:
    bodies = [body.encode() for body in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))]
    print(json.dumps({"ready": "generator"}), flush=True)
    for line in sys.stdin:
        print(json.dumps(asyncio.run(run(json.loads(line), bodies))), flush=True)


if __name__ == "__main__":
    main()
