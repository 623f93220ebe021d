"""`broadfast run` killed again and again, as by a power cut, ends with what an undisturbed run makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cluster.base.stage_folder import MANIFEST
from cluster.base.tables import read_table
from tests.helpers.command import broadfast, text
from tests.helpers.one_worker import training_here
from tests.helpers.small_run import small_config, small_models
from workflows.config import load_config
from workflows.runner import run_stages, select
from workflows.stages import STAGES

ROOT = Path(__file__).parents[2]
FASTER = ("student.baseline=false", "source.pairs=48")
SLOWER = ("engine.delay_s=0.1", "engine.replicas.flush_rows=1")
PATIENCE_S = 900.0
EXACT = {
    "1-pairs/pairs.parquet": None,
    "1-pairs/seeds.parquet": None,
    "2-rationales/kept.parquet": None,
    "2-rationales/filtered.parquet": None,
    "2-rationales/failed.parquet": None,
    "4-samples/kept.parquet": None,
    "4-samples/filtered.parquet": None,
    "5-preferences/preferences.parquet": ["preference_id", "chosen_prompt", "chosen", "rejected_prompt", "rejected"],
    "7-judgements/judgements.parquet": ["pair_id", "vote", "verdicts", "rationales"],
    "8-targets/targets.parquet": ["pair_id"],
    "9-student/lrkd/predictions.parquet": ["pair_id", "split", "label"],
}


class Command:
    """One `broadfast run` in a process group of its own, with everything that it starts."""

    def __init__(self, config: Path, run_dir: Path, *changes: str) -> None:
        sets = [f"--set={change}" for change in (*FASTER, *changes)]
        command = [sys.executable, "-m", "workflows.cli", "run", str(config), "--out", str(run_dir), *sets]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)

    def kill_when(self, ready: Callable[[], bool]) -> None:
        """Kill the group and all that it started, the moment that `ready` says so."""
        ended = time.monotonic() + PATIENCE_S
        while not ready():
            assert self.process.poll() is None, f"it ended before it could be killed:\n{self.end()}"
            assert time.monotonic() < ended, "the moment to kill never came"
            time.sleep(0.01)
        self.kill()

    def kill(self) -> None:
        if self.process.poll() is not None:
            return
        started = psutil.Process(self.process.pid).children(recursive=True)
        os.killpg(self.process.pid, signal.SIGKILL)
        for child in started:
            if child.is_running():
                child.kill()
        psutil.wait_procs(started, timeout=PATIENCE_S)
        self.process.communicate(timeout=PATIENCE_S)

    def end(self) -> str:
        """Wait for the end and return what it said."""
        said, _ = self.process.communicate(timeout=PATIENCE_S)
        return said


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return small_config(folder / "small.toml", small_models(folder / "models"))


@pytest.fixture(scope="module")
def started() -> Iterator[list[Command]]:
    """Every command that a test started; whatever happens, none outlives the tests."""
    commands: list[Command] = []
    yield commands
    for command in commands:
        command.kill()


@pytest.fixture(scope="module")
def undisturbed(local_ray: None, group: None, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to the student that nobody kills; its trainings are done in this process, where none is resumed."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("teacher.sft", "teacher.dpo", "distill.lrkd.stage"):
            patch.setattr(f"{module}.run_training", training_here)
        run_stages(load_config(config, FASTER), run_dir, select(None, "student"))
    return run_dir


def parts_in(folder: Path, most: int) -> Callable[[], bool]:
    return lambda: len(list(folder.glob("answers/*.parquet"))) >= most


def checkpoint_in(folder: Path) -> Callable[[], bool]:
    return lambda: any(folder.glob(".checkpoints/*/checkpoint_*/*"))


def finished(run_dir: Path) -> list[str]:
    return [stage.name for stage in STAGES if (run_dir / stage.name / MANIFEST).exists()]


def written(run_dir: Path, stages: list[str]) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for name in stages for p in (run_dir / name).rglob("*") if p.is_file()}


def test_killed_in_generation_sft_and_student(
    config: Path, undisturbed: Path, tmp_path: Path, started: list[Command]
) -> None:
    run_dir = tmp_path / "run"
    moments = {
        "2-rationales": parts_in(run_dir / "2-rationales", 4),
        "3-sft": checkpoint_in(run_dir / "3-sft"),
        "9-student": checkpoint_in(run_dir / "9-student" / "lrkd"),
    }
    names = [stage.name for stage in STAGES]
    for stage, moment in moments.items():
        slower = SLOWER if stage == "2-rationales" else ()
        started.append(Command(config, run_dir, *slower))
        started[-1].kill_when(moment)
        assert finished(run_dir) == names[: names.index(stage)], "killed in another stage than meant"
    answered = read_table(run_dir / "2-rationales" / "answers").num_rows
    before = written(run_dir, finished(run_dir))
    started.append(Command(config, run_dir))
    said = started[-1].end()
    assert started[-1].process.returncode == 0, said
    assert said.count("finished before, skipped") == names.index("9-student")
    assert written(run_dir, names[: names.index("9-student")]) == before
    assert read_table(run_dir / "2-rationales" / "answers").num_rows == answered
    for file, columns in EXACT.items():
        assert read_table(run_dir / file, columns).equals(read_table(undisturbed / file, columns)), file
    verified = broadfast("verify", run_dir)
    assert verified.exit_code == 0, text(verified)
