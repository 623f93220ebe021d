"""The ledger and the figures of the benchmark that kills workers, on what runs of known outcome leave behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.base.tables import write_table
from mpcot.config import PerspectiveSettings

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
NAMES = PerspectiveSettings().names


@pytest.fixture
def resilience(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import resilience as module  # type: ignore[import-not-found]

    return module


def write_generation(run_dir: Path, parts: list[list[int]], kept: list[int]) -> None:
    """Write parts of answers, one every 10 s, and the table of rows; a request is its number."""
    answers = run_dir / "2-rationales" / "answers"
    for at, keys in enumerate(parts):
        path = answers / f"w-{at}.parquet"
        write_table(path, pa.table({"key": [str(key) for key in keys]}))
        os.utime(path, (1000 + 10 * at, 1000 + 10 * at))
    for name, numbers in {"kept": kept, "filtered": [], "failed": []}.items():
        columns = {
            "pair_id": pa.array([str(number // len(NAMES)) for number in numbers], pa.string()),
            "perspective": pa.array([NAMES[number % len(NAMES)] for number in numbers], pa.string()),
        }
        write_table(answers.parent / f"{name}.parquet", pa.table(columns))


@pytest.mark.parametrize(
    ("parts", "kept", "lost", "twice"),
    [
        ([[0, 1], [2, 3], [4, 5]], [0, 1, 2, 3, 4, 5], 0, 0),
        ([[0, 1], [2, 3], [4]], [0, 1, 2, 3, 4], 1, 0),
        ([[0, 1], [2, 3], [4, 5]], [0, 1, 2, 3, 4], 1, 0),
        ([[0, 1], [2, 3, 1], [4, 5]], [0, 1, 2, 3, 4, 5], 0, 1),
        ([[0, 1], [2, 3], [4, 5]], [0, 1, 2, 3, 4, 5, 5], 0, 1),
    ],
    ids=["whole", "no-answer", "no-row", "answered-twice", "row-twice"],
)
def test_answers_and_rows_that_are_lost_or_there_twice_are_counted(
    resilience: Any, tmp_path: Path, parts: list[list[int]], kept: list[int], lost: int, twice: int
) -> None:
    write_generation(tmp_path, parts, kept)
    row = resilience.generation_row(tmp_path, 2)
    assert (row["lost"], row["twice"], row["seconds"], row["asked_again"]) == (lost, twice, 20, None)
    assert row["done"] == len({key for part in parts for key in part}) - 2, "the clock starts with the first part"
    (tmp_path / resilience.NOTES).write_text("x\n" * 9)
    assert resilience.generation_row(tmp_path, 2)["asked_again"] == 3


def test_a_training_must_learn_what_the_calm_one_did(resilience: Any, tmp_path: Path) -> None:
    losses = [1.0 / step for step in range(1, resilience.STEPS + 1)]
    rows = [{"step": n, "split": "train", "loss": loss} for n, loss in enumerate(losses, 1)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / resilience.NOTES).write_text("".join(f"{n}\n" for n in range(resilience.STEPS + 5)))
    row = resilience.training_row(tmp_path, losses)
    assert (row["done"], row["lost"], row["twice"], row["asked_again"]) == (resilience.STEPS, 0, 0, 5)
    assert row["seconds"] == resilience.STEPS + 4
    assert resilience.training_row(tmp_path, [*losses[:-1], 0.5])["lost"] == 1


def test_goodput_is_the_speed_under_failures_over_that_without(resilience: Any) -> None:
    shared = {"lost": 0, "twice": 0}
    rows = [
        {"arm": "generation", "mtbf_s": None, "kills": 0, "done": 100, "seconds": 10.0} | shared,
        {"arm": "generation", "mtbf_s": 60.0, "kills": 2, "done": 100, "seconds": 12.5} | shared,
        {"arm": "generation", "mtbf_s": 30.0, "kills": 4, "done": 100, "seconds": 20.0} | shared,
        {"arm": "training", "mtbf_s": None, "kills": 0, "done": 40, "seconds": 10.0} | shared,
        {"arm": "training", "mtbf_s": 60.0, "kills": 1, "done": 40, "seconds": 16.0} | shared | {"lost": 1},
    ]
    figures = {figure.name: figure for figure in resilience.figures(rows)}
    found = {name: figure.value for name, figure in figures.items()}
    assert found == pytest.approx(
        {
            "generation_goodput_60s": 0.8,
            "generation_goodput_30s": 0.5,
            "training_goodput_60s": 0.625,
            "lost": 1,
            "twice": 0,
        }
    )
    assert figures["generation_goodput_60s"].holds and not figures["lost"].holds
