"""What `scale.py` runs in processes of their own: the stages around the models, with stand-ins for the models.

An engine answers from a script, stage 3 leaves the tokenizer of the demo's teacher in place of a trained model, and
the reference log-probabilities of stage 5 and the vectors of stage 8 are constant.
"""

from __future__ import annotations

import argparse
import resource
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from cluster.base.ray_session import ray_session
from cluster.base.stage_folder import StageFolder, digest, write_json
from cluster.base.tables import table_writer
from cluster.config import ClusterSettings
from distill.config import TargetSettings, TargetsStage
from distill.targets import stage as targets
from mpcot.config import (
    JudgeSettings,
    PerspectiveSettings,
    RationaleSettings,
    RationaleStage,
    SampleSettings,
    SampleStage,
    ScriptedEngine,
    TeacherSettings,
    UntunedJudgeStage,
)
from mpcot.judgements import run_untuned
from mpcot.pairs import stage as pairs
from mpcot.rationales import run_rationales, run_samples
from mpcot.records import TARGET
from mpcot.sources.config import LabelSettings, PairsStage, TableSource
from teacher.config import DpoSettings, PreferenceSettings, PreferenceStage
from teacher.model import load_tokenizer
from teacher.preferences import reference_logprobs
from teacher.preferences import stage as preferences
from workflows.verify import verify_run

MODEL = Path(__file__).parents[1] / "models" / "smollm2-135m-instruct"
PERSPECTIVES = PerspectiveSettings()
SPLITS = ("train", "dev", "test")
SAMPLED = 100  # of so many pairs stages 4 and 5 see one of train and one of dev, with 15 answers and 4 preferences each
MIB, GIB = 2**20, 2**30
WORKER = "AnswerWorker"
EVERY_S = 0.25
CORES = 2
TITLE = "{brand} cordless drill {n}, 18 V, two batteries, case, keyless chuck of 13 mm, for wood and metal"
JUDGED_BY: dict[str, Any] = {"seed": 1, "labels": LabelSettings(), "perspectives": PERSPECTIVES}
ASKED_BY = JUDGED_BY | {"engine": ScriptedEngine()}
UNTUNED = ASKED_BY | {"teacher": TeacherSettings(model="scripted/none")}


def pair(number: int) -> dict[str, Any]:
    title = TITLE.format(brand=f"Brand{number % 977}", n=number)
    query = f"cordless drill {number // 10}"
    row: dict[str, Any] = {"pair_id": digest(["pair", number]), "query_id": digest(["query", query])}
    row |= {"product_id": str(number), "locale": "us", "query": query, "title": title, "split": "train"}
    return row | {"brand": None, "description": None, "label": "ESCI"[number % 4]}


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


class StubScorer:
    """Gives every answer the same log-probability."""

    def __init__(self, *settings: Any) -> None:
        pass

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        same = np.full(len(batch["preference_id"]), -1.0, np.float32)
        found = {f"{side}_logprob": same for side in reference_logprobs.SIDES}
        return {"preference_id": batch["preference_id"]} | found


class StubEncoder:
    """Gives every rationale the same vector of four numbers."""

    def __init__(self, settings: TargetSettings) -> None:
        self.vectors = [[0.5] * 4] * len(PERSPECTIVES.names)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = {"pair_id": batch["pair_id"].to_pylist(), "vectors": [self.vectors] * len(batch)}
        return pa.Table.from_pydict(rows | dict.fromkeys(TARGET.names[2:], [None] * len(batch)), schema=TARGET)


def save_tokenizer(folder: StageFolder) -> None:
    """Leave in place of stage 3's model what the stages around it read of one."""
    load_tokenizer(str(MODEL)).save_pretrained(folder.path / "model")
    folder.finish({})


def stages(run_dir: Path, pairs_read: int) -> dict[str, Callable[[StageFolder], None]]:
    """Return what runs, in this order."""
    source = PairsStage(source=TableSource(path=str(run_dir / "source.parquet")))
    samples = SampleSettings(pairs_per_split=max(1, pairs_read // SAMPLED))
    compared: dict[str, Any] = {"samples": samples, "preferences": PreferenceSettings(), "dpo": DpoSettings()}
    encoded = TargetsStage(
        labels=LabelSettings(),
        perspectives=PERSPECTIVES,
        targets=TargetSettings(encoder="scripted/none", pooling="mean"),
    )
    return {
        "1-pairs": partial(pairs.run, source),
        "2-rationales": partial(run_rationales, RationaleStage(**UNTUNED, rationales=RationaleSettings(splits=SPLITS))),
        "3-sft": save_tokenizer,
        "4-samples": partial(run_samples, SampleStage(**ASKED_BY, samples=samples)),
        "5-preferences": partial(preferences.run, PreferenceStage(**JUDGED_BY, **compared)),
        "7-judgements": partial(run_untuned, UntunedJudgeStage(**UNTUNED, judge=JudgeSettings())),
        "8-targets": partial(targets.run, encoded),
    }


def run_once(run_dir: Path, pairs_read: int, only: str | None) -> dict[str, Any]:
    """Run all stages, or only one, and return what each took."""
    targets.embed = partial(targets.embed, encoder=StubEncoder)  # type: ignore[arg-type]
    reference_logprobs.ReferenceScorer = StubScorer  # type: ignore[assignment,misc]
    taken: dict[str, Any] = {}
    memory = Memory()
    to_run = stages(run_dir, pairs_read)
    inputs = dict.fromkeys(to_run, "made")
    with ray_session(ClusterSettings(num_cpus=CORES, object_store_mb=400)):
        memory.start()
        for name in [only] if only else to_run:
            started = time.monotonic()
            to_run[name](StageFolder(run_dir, name, {}, inputs))
            taken[name] = round(time.monotonic() - started, 2)
            taken[f"{name}_gib"] = peak_gib()
    memory.ended.set()
    taken["worker_gib"] = round(memory.workers / GIB, 3)
    if not only:
        started = time.monotonic()
        wrong = [said for _, _, found in verify_run(run_dir) for said in found if "made again" not in said]
        assert not wrong, wrong
        taken["verify"] = round(time.monotonic() - started, 2)
    return taken | {"driver_cpu_s": round(time.process_time(), 2), "driver_gib": peak_gib()}


def peak_gib() -> float:
    """Return the largest memory of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("pairs", type=int)
    parser.add_argument("--only", help="name of the one stage that runs")
    parser.add_argument("--told", type=Path, required=True)
    given = parser.parse_args()
    write_json(given.told, run_once(given.run_dir, given.pairs, given.only))


if __name__ == "__main__":
    main()
