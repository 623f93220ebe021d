"""Runs that share a store keep to their own part of it, and a run whose folder was lost finds its part again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.base.run_folder import RUN_ID, run_id
from cluster.base.tables import write_table
from mpcot.asking import generate
from mpcot.asking.answers import ANSWERS
from mpcot.asking.generate import shared_folder
from mpcot.asking.plan import GenerationPlan
from mpcot.config import Replicas, ScriptedEngine
from mpcot.records import ANSWER
from tests.helpers.scripted_plan import PLAN, batches, keys, pair


def plan(store: Path) -> GenerationPlan:
    return replace(PLAN, engine=ScriptedEngine(replicas=Replicas(store=str(store))))


def answer(folder: Path, store: Path) -> None:
    """Write an answer to every request of one pair to the run's part of the store, as workers do."""
    made = {"rationale": "r", "verdict": "E", "prompt_tokens": 1, "output_tokens": 1, "tries": 1}
    rows = [
        {"key": key, "pair_id": "p0", "perspective": name, "sample": n} | made
        for (name, n), key in keys(plan(store)).items()
    ]
    parts = shared_folder(plan(store), folder, begin=True).child(ANSWERS)
    write_table(Path(parts.path("w1-000000.parquet")), pa.Table.from_pylist(rows, ANSWER))


def asked(folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many requests of the pair the stage would ask."""
    counts: list[int] = []
    monkeypatch.setattr(generate, "_run_workers", lambda *given: counts.append(given[-1][1]) or {})
    generate.generate(plan(store), batches([pair()]), folder, "rationales")
    return sum(counts)


def test_two_runs_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, (one, other) = tmp_path / "store", (tmp_path / name / "2-rationales" for name in ("one", "other"))
    missing = shared_folder(plan(store), other, begin=True).child(generate.MISSING)
    missing.child(generate.TRIED).touch("w1")
    answer(one, store)
    assert asked(one, store, monkeypatch) == 0 and asked(other, store, monkeypatch) == 6
    assert sorted(path.name.rpartition("-")[0] for path in store.iterdir()) == ["one", "other"]
    answer(one, store)
    assert missing.child(generate.TRIED).files() == [], "each clears its own requests"
    assert not list((other / ANSWERS).glob("*.parquet"))


def test_a_store_of_one_run_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, folder = tmp_path / "store", tmp_path / "first" / "2-rationales"
    answer(folder, store)
    (store / "2-rationales").symlink_to(store / str(run_id(folder.parent)) / "2-rationales")
    assert asked(tmp_path / "other" / "2-rationales", store, monkeypatch) == 0


def test_a_run_folder_that_was_lost_finds_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, folder = tmp_path / "store", tmp_path / "first" / "myshop" / "2-rationales"
    answer(folder, store)
    own = run_id(folder.parent)
    assert own is not None and own.startswith("myshop-") and not capsys.readouterr().out
    new = tmp_path / "second" / "myshop" / "2-rationales"
    assert run_id(new.parent) is None and asked(new, store, monkeypatch) == 6
    assert f"answers of {own}. If that is this run" in " ".join(capsys.readouterr().out.split())
    (new.parent / RUN_ID).write_text(f"{own}\n")
    assert asked(new, store, monkeypatch) == 0
    moved = folder.parent.rename(tmp_path / "moved")
    assert run_id(moved) == own
