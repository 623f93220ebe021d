"""Arms dealt by a hash, and exposures that outlive a stop."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import chisquare

from cluster.base.errors import UserError
from serve.experiments.assign import assign, position, shadows, unit_digest, unit_secret
from serve.experiments.config import Arm, ExperimentSettings
from serve.experiments.exposures import EXPOSURE, ExposureLog, read_exposures
from serve.parts import part_log
from tests.helpers.experiment_arms import ARMS, units

ROOT = Path(__file__).parents[4]
EXPERIMENT = ExperimentSettings(name="spring", arms=ARMS, flush_rows=3, flush_seconds=60)


def test_a_unit_keeps_its_arm_and_arms_get_their_shares() -> None:
    dealt = [assign(EXPERIMENT, unit).name for unit in units(10_000)]
    assert dealt == [assign(EXPERIMENT, unit).name for unit in units(10_000)]
    counts = [dealt.count(arm.name) for arm in ARMS[:3]]
    assert sum(counts) == 10_000
    assert chisquare(counts, [5000, 3000, 2000]).pvalue > 0.01
    assert [arm.name for arm in shadows(EXPERIMENT)] == ["dark"]


@pytest.mark.parametrize("change", [{"salt": "2"}, {"name": "summer"}])
def test_another_salt_or_experiment_deals_anew(change: dict) -> None:
    other = EXPERIMENT.model_copy(update=change)
    before = [position(EXPERIMENT, unit) for unit in units(4000)]
    after = [position(other, unit) for unit in units(4000)]
    assert abs(np.corrcoef(before, after)[0, 1]) < 4 / math.sqrt(4000)


@pytest.mark.parametrize(
    "ramp",
    [
        [(0.8, 0.1, 0.1), (0.6, 0.2, 0.2), (0.2, 0.4, 0.4), (0.01, 0.495, 0.495)],
        [(0.9, 0.05, 0.05), (0.5, 0.45, 0.05), (0.3, 0.6, 0.1), (0.1, 0.6, 0.3)],
        [(0.7, 0.1, 0.1, 0.1), (0.25, 0.25, 0.25, 0.25)],
    ],
)
def test_a_ramp_moves_nobody_between_treatments(ramp: list[tuple[float, ...]]) -> None:
    before: dict[str, str] = {}
    for shares in ramp:
        arms = tuple(Arm(name=f"arm-{n}", export="e", share=share) for n, share in enumerate(shares))
        plan = ExperimentSettings(name="ramp", arms=arms)
        now = {unit: assign(plan, unit).name for unit in units(6000)}
        counts = [list(now.values()).count(arm.name) for arm in arms]
        assert chisquare(counts, [6000 * share for share in shares]).pvalue > 0.001
        moved = {(before[unit], arm) for unit, arm in now.items() if before and before[unit] != arm}
        assert {old for old, _ in moved} <= {"arm-0"}, "a growing treatment takes from the control alone"
        before = now


def test_units_are_digested_by_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = unit_secret(tmp_path, EXPERIMENT)
    assert len(first) == 32 and unit_secret(tmp_path, EXPERIMENT) == first, "all replicas share it"
    assert (tmp_path / "unit-secret").stat().st_mode & 0o077 == 0
    assert len(list(tmp_path.iterdir())) == 1
    assert unit_digest(first, "a") != unit_digest(first, "b") != unit_digest(b"another", "b")
    named = EXPERIMENT.model_copy(update={"unit_secret_env": "UNIT_SECRET"})
    with pytest.raises(UserError, match="unit_secret_env UNIT_SECRET: the variable is not set"):
        unit_secret(tmp_path, named)
    monkeypatch.setenv("UNIT_SECRET", "pepper")
    assert unit_secret(tmp_path, named) == b"pepper"


def test_name_and_unit_do_not_run_into_one_another() -> None:
    one = EXPERIMENT.model_copy(update={"name": "a", "salt": "1"})
    assert position(one, "12") != position(EXPERIMENT.model_copy(update={"name": "a", "salt": "11"}), "2")


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ((ARMS[0],), "must add up to 1, but they add up to 0.5"),
        ((*ARMS, ARMS[0]), "names must differ"),
        ((*ARMS[:3], Arm(name="x", export="e")), "x has no share"),
        ((*ARMS[:3], Arm(name="x", export="e", share=0.1, shadow=True)), "x is a shadow with a share"),
    ],
)
def test_arms_that_cannot_be_dealt_are_refused(arms: tuple[Arm, ...], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ExperimentSettings(name="spring", arms=arms)


def until_written(log: ExposureLog) -> None:
    while not list(log.folder.rglob("*.parquet")):
        assert log.timer.is_alive()
        time.sleep(0.01)


def test_exposures_are_written_when_enough_wait_and_when_the_log_closes(tmp_path: Path) -> None:
    with closing(ExposureLog(tmp_path, EXPERIMENT)) as log:
        for number in range(4):
            log.append(f"r{number}", "shopper", ARMS[0], ["p"], [0.5])
            if number == 2:
                until_written(log)
        assert read_exposures(tmp_path).num_rows == 3
    table = read_exposures(tmp_path)
    assert table.schema.equals(EXPOSURE)
    assert table["request_id"].to_pylist() == ["r0", "r1", "r2", "r3"]
    assert "shopper" not in str(table.to_pylist())


def test_an_exposure_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    with closing(ExposureLog(tmp_path, EXPERIMENT.model_copy(update={"flush_seconds": 0.05}))) as log:
        log.append("r", "u", ARMS[0])
        until_written(log)


def test_many_threads_and_two_writers_lose_nothing(tmp_path: Path) -> None:
    with closing(ExposureLog(tmp_path, EXPERIMENT)) as one, closing(ExposureLog(tmp_path, EXPERIMENT)) as two:
        threads = [
            threading.Thread(target=lambda log=log, k=k: [log.append(f"{k}-{i}", "u", ARMS[0]) for i in range(25)])
            for k, log in enumerate((one, two, one, two))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = read_exposures(tmp_path)["request_id"].to_pylist()
    assert sorted(found) == sorted(f"{k}-{i}" for k in range(4) for i in range(25))


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: object) -> None:
        raise UserError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(part_log, "write_table", refuse)
        yield


def test_what_a_full_disk_refused_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(ExposureLog(tmp_path, EXPERIMENT)) as log, full_disk(monkeypatch):
        for number in range(5):
            log.append(f"r{number}", "u", ARMS[0])
        while log.failure is None:
            time.sleep(0.01)
        assert "full" in str(log.failure)
        log.append("r5", "u", ARMS[0])
        assert not log.wake.is_set(), "the next try is the timer's"
        with pytest.raises(UserError, match="full"):
            log.flush()
    assert read_exposures(tmp_path)["request_id"].to_pylist() == [f"r{i}" for i in range(6)]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_what_waits_for_a_disk_is_bounded_and_the_oldest_are_counted_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded = EXPERIMENT.model_copy(update={"max_waiting": 4, "flush_rows": 100, "flush_seconds": 60.0})
    with closing(ExposureLog(tmp_path, bounded)) as log, full_disk(monkeypatch):
        for number in range(9):
            log.append(f"r{number}", "u", ARMS[0])
            if number == 6:
                with pytest.raises(UserError, match="full"):
                    log.flush()
        assert log.lost == 5
    assert read_exposures(tmp_path)["request_id"].to_pylist() == [f"r{i}" for i in range(5, 9)]
    assert read_exposures(tmp_path, ["arm"]).column_names == ["arm"]


STOPPED = """
import signal, sys, threading
from contextlib import closing
from pathlib import Path
from serve.experiments.config import Arm, ExperimentSettings
from serve.experiments.exposures import ExposureLog
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
arm = Arm(name="control", export="a", share=1.0)
with closing(ExposureLog(Path(sys.argv[1]), ExperimentSettings(name="x", arms=(arm,), flush_seconds=60))) as log:
    for number in range(7):
        log.append(f"r{number}", "u", arm)
    print("ready", flush=True)
    stop.wait()
"""


def test_a_process_that_is_told_to_stop_loses_nothing(tmp_path: Path) -> None:
    pipes = {"stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", STOPPED, str(tmp_path)], cwd=ROOT, **pipes)
    assert process.stdout and process.stdout.readline() == "ready\n"
    assert not list(tmp_path.rglob("*.parquet"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(600) == 0
    assert read_exposures(tmp_path).num_rows == 7
