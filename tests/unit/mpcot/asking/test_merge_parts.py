"""Small parts become large ones, and no answer is lost or comes twice, whenever a run is killed."""

from __future__ import annotations

from pathlib import Path
from shutil import copy

import pyarrow as pa
import pytest

from cluster.base.shared_folder import SharedFolder
from cluster.base.tables import read_table, write_table
from mpcot.asking import merge_parts
from mpcot.asking.answers import OF_BATCH
from mpcot.asking.merge_parts import bring_parts
from mpcot.records import ANSWER


def write_part(folder: Path, name: str) -> str:
    fixed = {"perspective": "rules", "sample": 0, "tries": 1}
    rows = [fixed | {"key": f"{name}/{n}", "pair_id": f"p{n}", "rationale": "It is a drill."} for n in range(3)]
    write_table(folder / f"{name}.parquet", pa.Table.from_pylist(rows, ANSWER))
    return name


def keys(folder: Path) -> list[str]:
    return sorted(read_table(folder)["key"].to_pylist())


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(merge_parts, "MANY", 5)
    for number in range(8):
        write_part(tmp_path / "answers", f"w{number}-000000")
    write_part(tmp_path / "answers", f"{OF_BATCH}abc-000000")
    return tmp_path / "answers"


def test_many_small_parts_become_one_and_those_of_a_batch_stay(answers: Path) -> None:
    before = keys(answers)
    bring_parts(SharedFolder.at(answers), answers)
    names = sorted(path.name for path in answers.iterdir())
    assert len(names) == 2 and names[0].startswith(OF_BATCH) and names[1].startswith(merge_parts.MERGED)
    assert keys(answers) == before and len(before) == 27


def test_parts_that_are_large_enough_together_make_one_each(answers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(answers)
    monkeypatch.setattr(merge_parts, "SMALL_BYTES", 2 * (answers / "w0-000000.parquet").stat().st_size)
    bring_parts(SharedFolder.at(answers), answers)
    assert keys(answers) == before and len(list(answers.glob(f"{merge_parts.MERGED}*"))) == 4


def test_a_run_that_was_killed_before_it_removed_the_small_parts(answers: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()
    for part in answers.iterdir():
        copy(part, saved)
    before = keys(answers)
    bring_parts(SharedFolder.at(answers), answers)
    for name in ("w3-000000.parquet", "w7-000000.parquet"):
        copy(saved / name, answers)
    bring_parts(SharedFolder.at(answers), answers)
    assert keys(answers) == before


def test_a_store_keeps_small_parts_which_are_not_copied_again(answers: Path, tmp_path: Path) -> None:
    here, store = tmp_path / "here", SharedFolder.at(answers)
    bring_parts(store, here)
    merged = {path.name for path in here.iterdir()}
    assert len(merged) == 2 and len(store.files()) == 9
    write_part(answers, "w9-000000")
    bring_parts(store, here)
    assert {path.name for path in here.iterdir()} == merged | {"w9-000000.parquet"}
    for number in range(10, 14):
        write_part(answers, f"w{number}-000000")
    bring_parts(store, here)
    bring_parts(store, here)
    assert keys(here) == keys(answers) and len(list(here.iterdir())) == 2
