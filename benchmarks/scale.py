"""Measures how time and memory of the generation stage grow with the number of requests, and how it resumes.

The scripted engine answers at once, so that everything around a model is measured. Each size runs in processes of its
own: once from the beginning, and once with all answers present but not sorted yet.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from results import Figure, in_own_process, write_results

from cluster.base.ray_session import ray_session
from cluster.base.stage_folder import MANIFEST, StageFolder, digest, read_json, write_json
from cluster.base.tables import table_writer
from cluster.config import ClusterSettings
from mpcot.config import (
    PerspectiveSettings,
    RationaleSettings,
    RationaleStage,
    Replicas,
    ScriptedEngine,
    TeacherSettings,
)
from mpcot.rationales import run_rationales
from mpcot.records import PAIR
from mpcot.sources.config import LabelSettings

SIZES = (10_000, 100_000, 1_000_000)
REPLICAS = Replicas(pairs_per_task=256, flush_rows=4096)
WORKER = "AnswerWorker"
EVERY_S = 0.25
MIB = 2**20
TITLE = "{brand} cordless drill {n}, 18 V, two batteries, case, keyless chuck of 13 mm, for wood and metal"


def write_pairs(path: Path, count: int) -> None:
    """Write `count` training pairs with ids as stage 1 gives them, 50,000 in memory at a time."""
    with table_writer(path, PAIR) as writer:
        for start in range(0, count, 50_000):
            rows = [pair(number) for number in range(start, min(start + 50_000, count))]
            writer.write_table(pa.Table.from_pylist(rows, PAIR))


def pair(number: int) -> dict[str, Any]:
    title = TITLE.format(brand=f"Brand{number % 977}", n=number)
    query = f"cordless drill {number // 10}"
    row: dict[str, Any] = {"pair_id": digest(["pair", number]), "query_id": digest(["query", query])}
    row |= {"product_id": str(number), "locale": "us", "query": query, "title": title, "split": "train"}
    return row | {"brand": None, "description": None, "label": "ESCI"[number % 4]}


def stage() -> RationaleStage:
    return RationaleStage(
        seed=1,
        labels=LabelSettings(),
        perspectives=PerspectiveSettings(),
        teacher=TeacherSettings(model="scripted/none"),
        engine=ScriptedEngine(replicas=REPLICAS),
        rationales=RationaleSettings(),
    )


class Memory(threading.Thread):
    """Watches the largest private memory of the workers; what they share is limited by the object store."""

    def __init__(self, worker: str = WORKER) -> None:
        super().__init__(daemon=True)
        self.worker, self.workers = worker, 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(EVERY_S):
            for process in psutil.Process().children(recursive=True):
                try:
                    if any(self.worker in part for part in process.cmdline()):
                        memory = process.memory_info()
                        self.workers = max(self.workers, memory.rss - memory.shared)
                except psutil.NoSuchProcess:
                    continue


def run_once(run_dir: Path) -> dict[str, Any]:
    """Run the stage in `run_dir` and return what it took."""
    memory = Memory()
    with ray_session(ClusterSettings(num_cpus=2, object_store_mb=200)):
        memory.start()
        started, cpu = time.monotonic(), time.process_time()
        run_rationales(stage(), StageFolder(run_dir, "2-rationales", {}, {"1-pairs": "made"}))
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    memory.ended.set()
    manifest = read_json(run_dir / "2-rationales" / MANIFEST)
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    taken = {"seconds": round(seconds, 2), "driver_cpu_s": round(cpu, 2)}
    taken |= {"driver_mib": round(driver / MIB, 1), "worker_mib": round(memory.workers / MIB, 1)}
    counts = {"requests": manifest["counts"]["requested"], "asked": manifest["figures"]["asked"]}
    return counts | taken


def measure(run_dir: Path, what: str) -> dict[str, Any]:
    """Run the stage in a process of its own and return its row."""
    row = {"what": what} | in_own_process(__file__, "--run-dir", run_dir)
    print(row, flush=True)
    return row


def both(work: Path, requests: int) -> list[dict[str, Any]]:
    """Measure one size from the beginning, and again with all answers present but not sorted."""
    run_dir = work / str(requests)
    write_pairs(run_dir / "1-pairs" / "pairs.parquet", -(-requests // 3))
    first = measure(run_dir, "ask")
    for item in (run_dir / "2-rationales").glob("*.*"):
        item.unlink()
    rows = [first, measure(run_dir, "resume")]
    shutil.rmtree(run_dir)
    return rows


def figures(rows: list[dict[str, Any]]) -> list[Figure]:
    """Compare the largest size with a tenth of it. Goals are for a million requests only."""
    largest = max(row["requests"] for row in rows)
    asked = {row["requests"]: row for row in rows if row["what"] == "ask"}
    resumed = {row["requests"]: row for row in rows if row["what"] == "resume"}
    tenth = min(asked, key=lambda size: abs(size - largest / 10))
    times = asked[largest]["seconds"] / asked[tenth]["seconds"] * tenth / largest

    def peak(size: int, who: str) -> float:
        return max(asked[size][who], resumed[size][who])

    memory = max(peak(largest, who) / peak(tenth, who) for who in ("driver_mib", "worker_mib") if peak(tenth, who))
    resume = resumed[largest]["seconds"]
    million = largest >= SIZES[-1]
    time_limit, memory_limit, resume_limit = (1.05, 1.15, 60) if million else (None, None, None)
    return [
        Figure("time_exponent_excess", times, "time over rows in proportion", at_most=time_limit),
        Figure("memory_1m_over_100k", memory, "largest of driver, workers", at_most=memory_limit),
        Figure("resume_1m_s", resume, "s", at_most=resume_limit),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="largest number of requests")
    parser.add_argument("--run-dir", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--told", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run_dir:
        write_json(given.told, run_once(given.run_dir))
        return
    with tempfile.TemporaryDirectory(prefix="broadfast-scale-") as work:
        rows = [row for size in SIZES if size <= given.most for row in both(Path(work), size)]
    write_results("scale", figures(rows), rows)


if __name__ == "__main__":
    main()
