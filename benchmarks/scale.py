"""Measures how time, memory and files of the stages around the models grow with the number of requests.

Stages 1, 2, 7 and 8 run as they are, with a source of parquet, the engine that answers from a script, and an encoder
whose vectors are constant; then `broadfast verify`. So everything around a model is measured. Stage 4 is stage 2 again.
Each size runs in processes of its own: once from the beginning, and once with all answers of stage 2 there but not
sorted.
"""

from __future__ import annotations

import argparse
import math
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from results import Figure, in_own_process, write_results

from cluster.base.ray_session import ray_session
from cluster.base.stage_folder import MANIFEST, StageFolder, digest, read_json, write_json
from cluster.base.tables import table_writer
from cluster.config import ClusterSettings
from distill.config import TargetSettings, TargetsStage
from distill.targets import stage as targets
from mpcot.config import (
    JudgeSettings,
    PerspectiveSettings,
    RationaleSettings,
    RationaleStage,
    ScriptedEngine,
    TeacherSettings,
    UntunedJudgeStage,
)
from mpcot.judgements import run_untuned
from mpcot.pairs import stage as pairs
from mpcot.rationales import run_rationales
from mpcot.records import TARGET
from mpcot.sources.config import LabelSettings, PairsStage, TableSource
from workflows.verify import verify_run

SIZES = (30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
PERSPECTIVES = PerspectiveSettings()
SPLITS = ("train", "dev", "test")
MIB, GIB = 2**20, 2**30
WORKER = "AnswerWorker"
EVERY_S = 0.25
CORES, HEAD_CORES = 2, 16  # of Ray here, and of the machine that the estimate is for
TITLE = "{brand} cordless drill {n}, 18 V, two batteries, case, keyless chuck of 13 mm, for wood and metal"
COMMON: dict[str, Any] = {
    "seed": 1,
    "labels": LabelSettings(),
    "perspectives": PERSPECTIVES,
    "teacher": TeacherSettings(model="scripted/none"),
    "engine": ScriptedEngine(),
}


def pair(number: int) -> dict[str, Any]:
    title = TITLE.format(brand=f"Brand{number % 977}", n=number)
    query = f"cordless drill {number // 10}"
    row: dict[str, Any] = {"pair_id": digest(["pair", number]), "query_id": digest(["query", query])}
    row |= {"product_id": str(number), "locale": "us", "query": query, "title": title, "split": "train"}
    return row | {"brand": None, "description": None, "label": "ESCI"[number % 4]}


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


class StubEncoder:
    """Gives every rationale the same vector of four numbers."""

    def __init__(self, settings: TargetSettings) -> None:
        self.vectors = [[0.5] * 4] * len(PERSPECTIVES.names)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = {"pair_id": batch["pair_id"].to_pylist(), "vectors": [self.vectors] * len(batch)}
        return pa.Table.from_pydict(rows | dict.fromkeys(TARGET.names[2:], [None] * len(batch)), schema=TARGET)


def write_source(path: Path, count: int) -> None:
    """Write `count` judged products of ten per query, 50,000 in memory at a time."""
    names = ("query", "product_id", "title", "label")
    with table_writer(path, pa.schema([(name, pa.string()) for name in names])) as writer:
        for start in range(0, count, 50_000):
            numbers = range(start, min(start + 50_000, count))
            rows = [
                (f"drill {n // 10}", str(n), TITLE.format(brand=f"Brand{n % 977}", n=n), "ESCI"[n % 4]) for n in numbers
            ]
            writer.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))))


def stages(run_dir: Path) -> dict[str, Callable[[StageFolder], None]]:
    """Return what runs, in this order."""
    source = PairsStage(source=TableSource(path=str(run_dir / "source.parquet")))
    encoded = TargetsStage(
        labels=LabelSettings(),
        perspectives=PERSPECTIVES,
        targets=TargetSettings(encoder="scripted/none", pooling="mean"),
    )
    return {
        "1-pairs": partial(pairs.run, source),
        "2-rationales": partial(run_rationales, RationaleStage(**COMMON, rationales=RationaleSettings(splits=SPLITS))),
        "7-judgements": partial(run_untuned, UntunedJudgeStage(**COMMON, judge=JudgeSettings())),
        "8-targets": partial(targets.run, encoded),
    }


def run_once(run_dir: Path, names: list[str]) -> dict[str, Any]:
    """Run these stages and return what each took."""
    targets.embed = partial(targets.embed, encoder=StubEncoder)  # type: ignore[arg-type]
    taken: dict[str, Any] = {}
    memory = Memory()
    with ray_session(ClusterSettings(num_cpus=CORES, object_store_mb=400)):
        memory.start()
        for name in names:
            started = time.monotonic()
            inputs = dict.fromkeys(("1-pairs", "7-judgements"), "made")
            stages(run_dir)[name](StageFolder(run_dir, name, {}, inputs))
            taken[name] = round(time.monotonic() - started, 2)
            taken[f"{name}_gib"] = peak_gib()
    memory.ended.set()
    taken["worker_gib"] = round(memory.workers / GIB, 3)
    if len(names) > 1:
        started = time.monotonic()
        wrong = [said for _, _, found in verify_run(run_dir) for said in found if "made again" not in said]
        assert not wrong, wrong
        taken["verify"] = round(time.monotonic() - started, 2)
    return taken | {"driver_cpu_s": round(time.process_time(), 2), "driver_gib": peak_gib()}


def peak_gib() -> float:
    """Return the largest memory of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 3)


def measure(work: Path, requests: int) -> dict[str, Any]:
    """Measure one size from the beginning, and stage 2 once more with all its answers there but not sorted."""
    run_dir = work / str(requests)
    write_source(run_dir / "source.parquet", requests // len(PERSPECTIVES.names))
    found = in_own_process(__file__, "--run-dir", run_dir, "--stages", *stages(run_dir))
    files = sum(path.is_file() for path in run_dir.rglob("*"))
    counts = read_json(run_dir / "2-rationales" / MANIFEST)["counts"]
    for item in (run_dir / "2-rationales").glob("*.*"):
        item.unlink()
    again = in_own_process(__file__, "--run-dir", run_dir, "--stages", "2-rationales")
    assert read_json(run_dir / "2-rationales" / MANIFEST)["figures"]["asked"] == 0
    shutil.rmtree(run_dir)
    row = {"requests": counts["requested"], "files": files} | found
    row |= {"resume": again["2-rationales"], "resume_gib": again["driver_gib"]}
    print(row, flush=True)
    return row


def figures(rows: list[dict[str, Any]]) -> list[Figure]:
    """Compare the largest size with the one before it, and say what both let expect of more."""
    before, largest = rows[-2:]
    names = [name for name in largest if name[0].isdigit() and not name.endswith("_gib")]
    seconds = [sum(row[name] for name in names) for row in (before, largest)]
    growth = largest["requests"] / before["requests"]
    per_request = (seconds[1] - seconds[0]) / (largest["requests"] - before["requests"])
    excess = seconds[1] / (seconds[0] * growth)
    ten_million = 10_000_000 / largest["requests"]
    more_files = (largest["files"] - before["files"]) / (growth - 1) / before["requests"] * 10_000_000
    driver = (largest["driver_cpu_s"] - before["driver_cpu_s"]) / (largest["requests"] - before["requests"])
    # The driver is one process, whose own threads are not many; what workers do is shared by all cores.
    spread = max(0.0, CORES * per_request - driver) / HEAD_CORES
    hours = 300_000_000 * (driver + spread) / 3600
    return [
        Figure("time_exponent_excess", excess, "time over requests in proportion", at_most=1.05),
        Figure("time_exponent", math.log(seconds[1] / seconds[0], growth), "power of the requests"),
        Figure("driver_peak_gib", max(largest["driver_gib"], largest["resume_gib"]), "GiB", at_most=4),
        Figure("memory_largest_over_before", largest["driver_gib"] / before["driver_gib"], "ratio", at_most=1.15),
        Figure("resume_10m_s", largest["resume"] * ten_million, "s, in proportion", at_most=60),
        Figure("files_10m", more_files, "files, in proportion", at_most=10_000),
        Figure("seconds_per_million", per_request * 1e6, "s on this machine's cores"),
        Figure("driver_cpu_s_per_million", driver * 1e6, "s of the driver's CPU time"),
        Figure("hours_300m", hours, f"h, estimated for {HEAD_CORES} cores"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=SIZES[3], help="largest number of requests")
    parser.add_argument("--least", type=int, default=SIZES[1], help="smallest number of requests")
    parser.add_argument("--run-dir", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stages", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--told", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run_dir:
        write_json(given.told, run_once(given.run_dir, given.stages))
        return
    with tempfile.TemporaryDirectory(prefix="broadfast-scale-") as work:
        rows = [measure(Path(work), size) for size in SIZES if given.least <= size <= given.most]
    write_results("scale", figures(rows), rows)


if __name__ == "__main__":
    main()
