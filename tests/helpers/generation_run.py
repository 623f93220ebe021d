"""Stage 2 with the scripted engine in a process of its own, on a Ray that tests start: what faults are done to."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from cluster.base.errors import UserError
from cluster.base.ray_session import ray_session
from cluster.base.stage_folder import MANIFEST, StageFolder, read_json
from cluster.base.tables import rows_of, values_of, write_table
from cluster.config import ClusterSettings
from mpcot.config import PerspectiveSettings, RationaleSettings, RationaleStage, ScriptedEngine, TeacherSettings
from mpcot.rationales import run_rationales
from mpcot.records import PAIR
from mpcot.sources.config import LabelSettings

ROOT = Path(__file__).parents[2]
STAGE = "2-rationales"
WORKER = "AnswerWorker"
PERSPECTIVES = PerspectiveSettings().names
PATIENCE_S = 600.0


def write_pairs(run_dir: Path, count: int) -> None:
    """Write the pairs that stage 1 would."""
    fixed = {"query_id": "q", "locale": "us", "query": "red drill", "brand": None, "description": None}
    rows = [
        fixed
        | {"pair_id": f"{number * 37 % 256:02x}{number:06x}", "product_id": str(number), "title": f"drill {number}"}
        for number in range(count)
    ]
    rows = [row | {"label": "ESCI"[number % 4], "split": "train"} for number, row in enumerate(rows)]
    write_table(run_dir / "1-pairs" / "pairs.parquet", pa.Table.from_pylist(rows, PAIR))


def stage(engine: dict[str, Any], log: Path | None = None, **asked: Any) -> RationaleStage:
    return RationaleStage(
        seed=1,
        labels=LabelSettings(),
        perspectives=PerspectiveSettings(),
        teacher=TeacherSettings(model="scripted/none"),
        engine=ScriptedEngine(**engine, log=str(log) if log else None),
        rationales=RationaleSettings(**{"retries": 0, **asked}),
    )


def run_here(run_dir: Path, engine: dict[str, Any], log: Path | None = None, **asked: Any) -> dict[str, Any]:
    """Run the stage on the connected Ray and return its manifest; a line per request goes to `log`."""
    run_rationales(stage(engine, log, **asked), StageFolder(run_dir, STAGE, {}, {"1-pairs": "made"}))
    return read_json(run_dir / STAGE / MANIFEST)


class Driver:
    """The stage in a process of its own on the Ray at `address`."""

    def __init__(self, run_dir: Path, address: str, engine: dict[str, Any]) -> None:
        self.run_dir = run_dir
        command = [sys.executable, "-m", "tests.helpers.generation_run", str(run_dir), json.dumps(engine)]
        environment = os.environ | {"RAY_ADDRESS": address}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)  # type: ignore[call-overload]

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self, patience_s: float = PATIENCE_S) -> str:
        """Wait for the end and return what it said."""
        return self.process.communicate(timeout=patience_s)[0]

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready`, which must come before the driver's end."""
        ended = time.monotonic() + PATIENCE_S
        while not ready():
            assert self.process.poll() is None, f"it ended too early:\n{self.end()}"
            assert time.monotonic() < ended, "the moment never came"
            time.sleep(0.02)


def processes(matches: Callable[[psutil.Process], bool], under: int | None = None) -> list[psutil.Process]:
    """Return the running processes below process `under`, this one if none is given, that match."""
    found = []
    for process in psutil.Process(under).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end between being listed and being looked at
            if matches(process):
                found.append(process)
    return found


def workers(node: Any = None) -> list[psutil.Process]:
    """Return the processes of answer workers on a node of a `Cluster`, or on every Ray that this process started."""
    under = None if node is None else node.all_processes["raylet"][0].process.pid
    return processes(lambda process: any(WORKER in part for part in process.cmdline()), under)


def parts(run_dir: Path) -> list[Path]:
    return sorted((run_dir / STAGE / "answers").glob("*.parquet"))


def asked(run_dir: Path) -> Counter[str]:
    """Return how often each request was asked."""
    log = run_dir / "asked"
    return Counter(log.read_text(encoding="utf-8").split()) if log.exists() else Counter()


def written(run_dir: Path) -> set[str]:
    """Return the keys that are on disk; parts may be joined, and so replaced, while they are read."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            return {key for part in parts(run_dir) for keys in values_of(part, "key") for key in keys}


def check_exactly_once(run_dir: Path) -> None:
    """Assert that the finished stage has every request in exactly one of its tables, and nothing besides."""
    pairs = [row["pair_id"] for row in rows_of(run_dir / "1-pairs" / "pairs.parquet", ["pair_id"])]
    found: Counter[tuple[str, str]] = Counter()
    for kind in ("kept", "filtered", "failed"):
        found.update((row["pair_id"], row["perspective"]) for row in rows_of(run_dir / STAGE / f"{kind}.parquet"))
    assert set(found) == {(pair, name) for pair in pairs for name in PERSPECTIVES}
    assert set(found.values()) == {1}
    files = {path.name for path in (run_dir / STAGE).rglob("*") if path.is_file()}
    assert not [name for name in files if name.endswith(".partial")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("engine", type=json.loads)
    given = parser.parse_args()
    with ray_session(ClusterSettings()):
        try:
            run_here(given.run_dir, given.engine, given.run_dir / "asked")
        except UserError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
