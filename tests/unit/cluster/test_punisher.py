"""The punisher kills what descends from the processes that it is given, as often as it should, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import psutil
import pytest

from cluster import punisher
from cluster.punisher import punish, victims

# A run as the process table shows it: a head that is spared, another node with a worker, and a worker with an engine.
RUN = """
(exec -a /x/raylet bash -c 'sleep 600 & wait' raylet --head) &
(exec -a /x/raylet bash -c '(exec -a "ray::RayTrainWorker" sleep 600) & wait') &
(exec -a "ray::MapWorker(MapBatches(AnswerWorker)).submit" bash -c 'bash -c "sleep 600 & wait" & wait') &
(exec -a ray::IDLE sleep 600) &
wait
"""
ENDS_S = 20.0


@pytest.fixture
def run() -> Iterator[psutil.Process]:
    """The run's process, with all its descendants there."""
    started = psutil.Popen(["bash", "-c", RUN])
    ends = time.monotonic() + ENDS_S
    while len(victims([started])) < 5:
        assert time.monotonic() < ends, started.children(recursive=True)
        time.sleep(0.02)
    yield started
    for process in (*started.children(recursive=True), started):
        process.kill()
    started.wait()


def kinds_of(run: psutil.Process) -> list[str]:
    return sorted(victim.kind for victim in victims([run]))


def test_workers_engines_and_nodes_are_found_and_neither_the_head_nor_idle_processes(run: psutil.Process) -> None:
    assert kinds_of(run) == ["engine", "engine", "node", "worker", "worker"]
    engine = next(victim for victim in victims([run], ["engine"]))
    assert "AnswerWorker" in engine.name, "an engine is named after the worker that it belongs to"
    assert victims([run, run]) == victims([run]), "a process is listed once"


def test_a_node_goes_with_all_that_runs_on_it(run: psutil.Process) -> None:
    (node,) = victims([run], ["node"])
    below = node.process.children(recursive=True)
    node.kill()
    psutil.wait_procs(below, timeout=ENDS_S)
    assert kinds_of(run) == ["engine", "engine", "worker"]


def test_it_kills_until_nothing_is_left_and_spares_what_is_no_victim(run: psutil.Process) -> None:
    spared = {child.pid for child in run.children(recursive=True)} - {v.process.pid for v in victims([run])}
    killed = [victim.kind for _, victim in punish([run], 0.01, seed=3, seconds=4)]
    assert killed and kinds_of(run) == []
    assert {child.pid for child in run.children(recursive=True)} & spared
    assert run.is_running()


def test_the_command_ends_with_its_run_and_logs_what_it_killed(run: psutil.Process, tmp_path: Path) -> None:
    log = tmp_path / "killed.jsonl"
    told = ["--mtbf-s", "0.01", "--kinds", "worker", "--seed", "5", "--log", str(log)]
    command = subprocess.Popen([sys.executable, "-m", "cluster.punisher", str(run.pid), *told])
    while victims([run], ["worker"]):
        time.sleep(0.05)
    for process in (*run.children(recursive=True), run):
        process.kill()
    assert command.wait(ENDS_S) == 0
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["worker", "worker"]
    assert {row["name"] for row in rows} == {"ray::RayTrainWorker", "ray::MapWorker(MapBatches(AnswerWorker)).submit"}


def test_a_process_that_is_not_there_is_refused() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    command = [sys.executable, "-m", "cluster.punisher", str(gone.pid)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 2 and f"pid {gone.pid}: there is no such process" in said.stderr


class Clock:
    """Time that passes as it is slept."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Immortal:
    """A victim and a run that nothing ends."""

    kind, pid = "worker", 1

    def kill(self) -> None:
        """Stay."""


def test_the_mean_time_between_failures_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(punisher, "time", Clock())
    monkeypatch.setattr(punisher, "_runs", lambda process: True)
    monkeypatch.setattr(punisher, "victims", lambda roots, kinds: [Immortal()])
    times = [at for at, _ in punish([Immortal()], 60, seed=1, seconds=60_000)]  # type: ignore[list-item]
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert fmean(gaps) == pytest.approx(60, rel=0.1)
    assert sum(gap > 60 for gap in gaps) / len(gaps) == pytest.approx(0.37, abs=0.05), "exponential: 1 / e are longer"
    again = [at for at, _ in punish([Immortal()], 60, seed=1, seconds=100)]  # type: ignore[list-item]
    assert again == pytest.approx(times[: len(again)]), "the seed decides the moments"
