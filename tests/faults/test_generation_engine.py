"""Engines that die or hang and disks that are full, in a generation on a local Ray."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import MANIFEST
from cluster.base.tables import read_table
from mpcot.config import PerspectiveSettings
from mpcot.perspectives.perspective import load_perspectives
from tests.helpers.generation_run import PERSPECTIVES, STAGE, check_exactly_once, parts, run_here, write_pairs, written

pytestmark = pytest.mark.usefixtures("local_ray")
PAIRS = 30
REPLICAS = {"pairs_per_task": 2, "flush_rows": 4}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_pairs(tmp_path, PAIRS)
    return tmp_path


def engine(**settings: Any) -> dict[str, Any]:
    return {"replicas": REPLICAS | settings.pop("replicas", {})} | settings


def test_an_engine_that_dies_is_started_anew_and_asks_nothing_twice(run_dir: Path) -> None:
    manifest = run_here(run_dir, engine(stops_after=40, delay_s=0.01))
    assert manifest["figures"]["asked"] == 3 * PAIRS
    check_exactly_once(run_dir)
    # An engine that is gone answers none of those that it was asked last.
    assert len(written(run_dir)) == 3 * PAIRS
    assert len({part.name.split("-")[0] for part in parts(run_dir)}) == 3


def test_an_engine_that_hangs_again_and_again_stops_the_run_with_its_reason(run_dir: Path) -> None:
    hanging = engine(hangs_after=20, replicas={"stalled_s": 3, "restarts": 1})
    said = r"rationales: the engine stopped: it finished no answer for 3 s \(engine.replicas.stalled_s\)"
    with pytest.raises(UserError, match=said):
        run_here(run_dir, hanging)
    assert not (run_dir / STAGE / MANIFEST).exists()
    # Two engines that narrow down what the first was asked are excused, if they come to it.
    kept = len(written(run_dir))
    assert 39 <= kept <= 80
    manifest = run_here(run_dir, engine())
    assert manifest["figures"]["asked"] == 3 * PAIRS - kept
    check_exactly_once(run_dir)


def test_a_request_that_stops_every_engine_becomes_a_failed_row_and_the_rest_goes_on(run_dir: Path) -> None:
    question = load_perspectives(PerspectiveSettings())[1].question
    poisoned = engine(stops_on=f"Product: drill 7\n\n{question}", delay_s=0.01, replicas={"pairs_per_task": 8})
    manifest = run_here(run_dir, poisoned, max_failed_share=0.1)
    check_exactly_once(run_dir)
    (failed,) = read_table(run_dir / STAGE / "failed.parquet").to_pylist()
    assert failed["perspective"] == PERSPECTIVES[1] and failed["reason"].startswith("stops the engine: ")
    assert manifest["figures"]["asked"] == 3 * PAIRS
    (run_dir / STAGE / MANIFEST).unlink()
    assert run_here(run_dir, poisoned, max_failed_share=0.1)["figures"]["asked"] == 0, "it stops no engine again"


def test_what_a_kill_left_half_written_is_cleared_away(run_dir: Path) -> None:
    run_here(run_dir, engine())
    cut, *_ = parts(run_dir)
    cut.with_name(cut.name + ".partial").write_bytes(cut.read_bytes()[:60])
    lost = len(written(run_dir))
    cut.unlink()
    lost -= len(written(run_dir))
    (run_dir / STAGE / MANIFEST).unlink()
    assert run_here(run_dir, engine())["figures"]["asked"] == lost
    check_exactly_once(run_dir)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=320k", "small", str(place)], check=False)
    if made.returncode:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_stops_the_run_and_what_fitted_is_kept(small_disk: Path) -> None:
    write_pairs(small_disk, PAIRS)
    with pytest.raises(UserError, match=r"rationales: cannot write .*: the disk is full\. Free"):
        run_here(small_disk, engine(replicas={"flush_rows": 1}))
    kept = written(small_disk)
    assert kept and not (small_disk / STAGE / MANIFEST).exists()
    larger = Path(shutil.copytree(small_disk, small_disk.parent / "larger"))
    manifest = run_here(larger, engine())
    assert manifest["figures"]["reused"] == len(kept)
    check_exactly_once(larger)
