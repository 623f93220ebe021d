"""vLLM's own core process killed in the middle of a generation: a new engine asks for what is not written."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from cluster.base.stage_folder import MANIFEST, StageFolder, read_json
from mpcot.config import (
    PerspectiveSettings,
    RationaleSettings,
    RationaleStage,
    Replicas,
    TeacherSettings,
    VllmEngine,
)
from mpcot.rationales import run_rationales
from mpcot.sources.config import LabelSettings
from tests.helpers.generation_run import (
    PERSPECTIVES,
    ROOT,
    STAGE,
    check_exactly_once,
    parts,
    processes,
    workers,
    write_pairs,
    written,
)

MODEL = ROOT / "models" / "smollm2-135m-instruct"
PAIRS = 6
PATIENCE_S = 600.0
CONFIG = RationaleStage(
    seed=1,
    labels=LabelSettings(),
    perspectives=PerspectiveSettings(),
    teacher=TeacherSettings(model=str(MODEL)),
    engine=VllmEngine(
        max_model_len=512, max_num_seqs=8, enforce_eager=True, replicas=Replicas(cpus=2, pairs_per_task=2, flush_rows=4)
    ),
    rationales=RationaleSettings(
        guide="short", description_chars=0, max_tokens=24, max_chars=120, retries=0, max_failed_share=1
    ),
)

pytestmark = [
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.skipif(not MODEL.is_dir(), reason="no model folder: `make setup` makes it"),
]


def cores() -> list[psutil.Process]:
    """Return the processes of engines' cores: what an answer worker started, but Python's own resource tracker."""
    owners = {worker.pid for worker in workers()}
    return processes(lambda child: child.ppid() in owners and "resource_tracker" not in " ".join(child.cmdline()))


def kill_core_once_answers_are_written(run_dir: Path) -> int:
    """Kill the engine's core process and return how many answers were on disk before it."""
    ended = time.monotonic() + PATIENCE_S
    while time.monotonic() < ended:
        if parts(run_dir) and (running := cores()):
            before = len(written(run_dir))
            running[0].kill()
            return before
        time.sleep(0.05)
    raise TimeoutError(f"parts: {len(parts(run_dir))}, processes: {processes(lambda child: True)}")


def test_a_killed_core_is_started_anew_and_nothing_is_lost_or_asked_twice(tmp_path: Path) -> None:
    write_pairs(tmp_path, PAIRS)
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_core_once_answers_are_written, tmp_path)
        run_rationales(CONFIG, StageFolder(tmp_path, STAGE, {}, {"1-pairs": "made"}))
    assert 0 < killed.result() < PAIRS * len(PERSPECTIVES)
    check_exactly_once(tmp_path)
    assert len({part.name.split("-")[0] for part in parts(tmp_path)}) == 2, "two workers wrote, one after the other"
    assert read_json(tmp_path / STAGE / MANIFEST)["figures"]["asked"] == PAIRS * len(PERSPECTIVES)
