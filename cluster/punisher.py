"""Kills workers, engines and nodes of one run at random moments, to see that the run loses nothing by it.

    python -m cluster.punisher PID --mtbf-s 60 --log killed.jsonl

PID is the run's process, whose local Ray descends from it. On a cluster, start one on each node with the PID of the
node's raylet. Nothing is killed that does not descend from the given processes. The times between failures are drawn
from an exponential distribution, as those of machines that fail independently of their age.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

KINDS = ("worker", "engine", "node")
# Ray names its processes after what they run: here the workers of Ray Data and those of Ray Train.
WORKER = re.compile(r"^ray::(MapWorker\(|RayTrainWorker)")
HELPER = "resource_tracker"  # Python's own, beside the processes of an engine
LOOK_S = 0.2


@dataclass(frozen=True)
class Victim:
    """A process that may be killed: a worker, a process of its engine, or a raylet for its whole node."""

    kind: str
    process: psutil.Process
    name: str

    def kill(self) -> None:
        """Kill the process at once, and with a raylet all that descends from it, as when a machine fails."""
        others = self.process.children(recursive=True) if self.kind == "node" else []
        for process in (self.process, *others):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def victims(roots: Sequence[psutil.Process], kinds: Sequence[str] = KINDS) -> list[Victim]:
    """Return what may be killed below `roots`, themselves included. The head's node is spared: the run ends with it."""
    found = [victim for root in roots for victim in _below(root, "", "")]
    return [victim for victim in {v.process.pid: v for v in found}.values() if victim.kind in kinds]


def _below(process: psutil.Process, kind: str, owner: str) -> Iterator[Victim]:
    """Yield the victims in the tree of `process`, which descends from a worker if `kind` says so."""
    try:
        command, children = process.cmdline(), process.children()
    except psutil.Error:  # it may end between being listed and being looked at
        return
    own = "engine" if kind in ("worker", "engine") else _kind(command)
    if own and HELPER not in " ".join(command):
        yield Victim(own, process, owner or command[0])
    for child in children:
        yield from _below(child, own, command[0] if own == "worker" else owner)


def _kind(command: Sequence[str]) -> str:
    if command and WORKER.match(command[0]):
        return "worker"
    return "node" if command and Path(command[0]).name == "raylet" and "--head" not in command else ""


def punish(
    roots: Sequence[psutil.Process],
    mtbf_s: float,
    seed: int,
    kinds: Sequence[str] = KINDS,
    seconds: float | None = None,
) -> Iterator[tuple[float, Victim]]:
    """Kill at random until all `roots` have ended or the time is over; yield when and what was killed.

    Of the kinds that are there, each is as likely as the others. A failure that finds nothing to kill, as while a run
    starts, waits until there is something.

    Args:
        mtbf_s: the mean time between two failures of the whole run, in seconds.
    """
    draw, began = random.Random(seed), time.monotonic()
    due = draw.expovariate(1 / mtbf_s)
    while any(map(_runs, roots)) and (seconds is None or time.monotonic() - began < seconds):
        time.sleep(LOOK_S)
        if time.monotonic() - began < due or not (found := victims(roots, kinds)):
            continue
        kind = draw.choice(sorted({victim.kind for victim in found}))
        victim = draw.choice([victim for victim in found if victim.kind == kind])
        victim.kill()
        yield time.monotonic() - began, victim
        due = time.monotonic() - began + draw.expovariate(1 / mtbf_s)


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cluster.punisher", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pid", nargs="+", type=int, help="process of a run, or raylets of a cluster's nodes")
    parser.add_argument("--mtbf-s", type=float, default=60.0, help="mean time between failures in seconds")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what is killed")
    parser.add_argument("--seed", type=int, default=0, help="decides moments and victims")
    parser.add_argument("--seconds", type=float, help="stop after so long; by default when the run ends")
    parser.add_argument("--log", type=Path, help="file that gets a line of JSON for each kill")
    given = parser.parse_args()
    roots = []
    for pid in given.pid:
        try:
            roots.append(psutil.Process(pid))
        except psutil.NoSuchProcess:
            parser.error(f"pid {pid}: there is no such process. Give that of a run that goes on")
    if given.mtbf_s <= 0:
        parser.error(f"--mtbf-s {given.mtbf_s:g}: give a number above 0")
    for at, victim in punish(roots, given.mtbf_s, given.seed, given.kinds, given.seconds):
        row = {"at_s": round(at, 2), "kind": victim.kind, "pid": victim.process.pid, "name": victim.name}
        print(json.dumps(row), flush=True)
        if given.log:
            with given.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
