"""Parts of exposures: few files by hour, each row once, and what cannot be written is put aside."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.base.errors import UserError
from serve.experiments.config import ExperimentSettings
from serve.experiments.exposures import ExposureLog, read_exposures
from serve.parts import part_log
from serve.parts.part_log import HOUR, parts_of
from tests.helpers.experiment_arms import ARMS

PLAN = ExperimentSettings(name="spring", arms=ARMS, flush_seconds=3600, part_rows=6)


def requests(folder: Path) -> list[str]:
    return sorted(read_exposures(folder)["request_id"].to_pylist())


def written(log: ExposureLog, *names: str) -> None:
    for name in names:
        log.append(name, "u", ARMS[0], model="m")
    log.flush()


def test_small_parts_become_one_in_the_folder_of_their_hour(tmp_path: Path) -> None:
    with closing(ExposureLog(tmp_path, PLAN)) as log:
        for n in range(5):
            written(log, f"a{n}", f"b{n}")
        names = sorted(path.name for path in tmp_path.rglob("*.parquet"))
        assert len(names) == 3, "six rows are one part, and four are two small ones"
        assert requests(tmp_path) == sorted(f"{letter}{n}" for n in range(5) for letter in "ab")
    (first, second) = sorted(tmp_path.rglob("*.parquet"))
    assert [pq.read_metadata(part).num_rows for part in (first, second)] == [6, 4]
    datetime.strptime(first.parent.name, HOUR)


def test_few_rows_are_joined_when_it_is_time(tmp_path: Path) -> None:
    with closing(ExposureLog(tmp_path, PLAN)) as log:
        written(log, "a")
        log.began -= PLAN.part_seconds
        written(log, "b")
        (part,) = tmp_path.rglob("*.parquet")
        assert part_log.SMALL not in part.name and requests(tmp_path) == ["a", "b"]
        written(log, "c")
        assert part_log.SMALL in max(tmp_path.rglob("*.parquet")).name, "the next ten minutes have begun"


def test_a_kill_while_parts_are_joined_counts_no_row_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(ExposureLog(tmp_path, PLAN)) as log:
        monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        for n in range(3):
            written(log, f"a{n}", f"b{n}")
        monkeypatch.undo()
    assert len(list(tmp_path.rglob("*.parquet"))) == 4, "three small ones beside the one that has their rows"
    assert len(requests(tmp_path)) == 6


def test_hours_that_are_over_before_are_not_opened(tmp_path: Path) -> None:
    now = datetime(2026, 12, 1, 12, 30, tzinfo=UTC)
    for hours in range(5):
        part = tmp_path / (now - timedelta(hours=hours)).strftime(HOUR) / f"{hours}.parquet"
        part.parent.mkdir()
        part.touch()
    assert [part.stem for part in parts_of(tmp_path, now)] == ["1", "0"], "a part may reach into the next hour"
    assert len(parts_of(tmp_path)) == 5


def test_what_cannot_be_written_at_the_end_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "aside"))
    lost: list[int] = []
    log = ExposureLog(tmp_path / "full", PLAN.model_copy(update={"max_waiting": 2}), lost.append)
    write = part_log.write_table

    def refuse(path, table):
        if "full" in str(path):
            raise UserError("the disk is full")
        return write(path, table)

    monkeypatch.setattr(part_log, "write_table", refuse)
    for name in "abc":
        log.append(name, "u", ARMS[0])
    with pytest.raises(UserError, match=r"the disk is full 2 exposures are in .*aside"):
        log.close()
    assert lost == [1] and requests(tmp_path / "aside") == ["b", "c"]
    (put,) = (tmp_path / "aside").iterdir()
    assert put.stat().st_mode & 0o077 == 0, "no other user may read what is put aside"
