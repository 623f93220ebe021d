"""Corrected labels come back from Label Studio and from tables, and are joined with earlier ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.base.errors import UserError
from mpcot.audit.audit_data import JudgedRun, collect
from mpcot.audit.corrections import Imported, import_corrections
from mpcot.audit.label_studio import write_tasks
from mpcot.pairs.overrides import read_overrides
from mpcot.sources.open_source import cleaning_of
from tests.helpers.audit_run import IDS, write_run


@pytest.fixture
def run(tmp_path: Path) -> JudgedRun:
    return JudgedRun.open(write_run(tmp_path / "run"))


def said(*labels: str | None, cancelled: bool = False) -> list[dict[str, Any]]:
    """Annotations as Label Studio exports them, one of each person."""
    return [
        {
            "was_cancelled": cancelled,
            "result": [{"from_name": "label", "to_name": "product", "type": "choices", "value": {"choices": [label]}}]
            if label
            else [],
        }
        for label in labels
    ]


def labels(path: Path, run: JudgedRun) -> dict[str, str]:
    """The overrides as stage 1 reads them."""
    return {row["pair_id"]: row["label"] for row in read_overrides(str(path), cleaning_of(run.source, run.scheme))}


def put(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_an_export_of_our_own_tasks_comes_back(tmp_path: Path, run: JudgedRun) -> None:
    tasks = json.loads(write_tasks(collect(run, 9, 0.5), tmp_path).read_text())
    first, second = ({"id": n, **task, "annotations": said("E")} for n, task in enumerate(tasks))
    second["annotations"] = said("S", "I", "S")
    done = import_corrections(run, put(tmp_path / "export.json", [first, second]), tmp_path / "overrides.jsonl")
    assert done == Imported(changed=1, confirmed=1)
    assert labels(tmp_path / "overrides.jsonl", run) == {IDS[2]: "E", IDS[1]: "S"}


def test_skipped_tasks_are_no_labels_and_people_who_disagree_are_named(tmp_path: Path, run: JudgedRun) -> None:
    tasks = [
        {"data": {"pair_id": IDS[0]}, "annotations": said("S", cancelled=True)},
        {"data": {"pair_id": IDS[1]}, "annotations": said(None)},
        {"data": {"pair_id": IDS[2]}, "annotations": said("E", "S")},
        {"data": {"query": "Red Lamp 4", "product_id": "x4"}, "annotations": said("S")},
        {"data": {"query": "no such", "product_id": "x9"}, "annotations": said("E")},
    ]
    done = import_corrections(run, put(tmp_path / "export.json", tasks), tmp_path / "o.jsonl")
    assert (done.changed, done.confirmed) == (1, 0)
    assert done.unknown == ["'no such', product x9"]
    assert done.undecided == ["'red lamp 2', product x2 (E, S)"]
    assert labels(tmp_path / "o.jsonl", run) == {IDS[4]: "S"}


def test_json_min_and_tables_are_read_too(tmp_path: Path, run: JudgedRun) -> None:
    export = put(tmp_path / "min.json", [{"id": 1, "pair_id": IDS[1], "label": "I"}, {"id": 2, "pair_id": IDS[2]}])
    assert import_corrections(run, export, tmp_path / "a.jsonl") == Imported(changed=1)
    table = tmp_path / "labels.csv"
    table.write_text("query,product_id,label\nred lamp 1,x1,I\nred lamp 2,x2,\n", encoding="utf-8")
    assert import_corrections(run, table, tmp_path / "b.jsonl") == Imported(changed=1)
    assert labels(tmp_path / "a.jsonl", run) == labels(tmp_path / "b.jsonl", run) == {IDS[1]: "I"}


def test_earlier_corrections_stay_unless_corrected_again(tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.jsonl"
    rows = [{"pair_id": IDS[0], "label": "S"}, {"pair_id": "feed", "label": "C"}]
    earlier.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = JudgedRun.open(write_run(tmp_path / "run", earlier))
    path = tmp_path / "overrides.jsonl"
    import_corrections(run, put(tmp_path / "1.json", [{"pair_id": IDS[1], "label": "I"}]), path)
    assert labels(path, run) == {IDS[0]: "S", "feed": "C", IDS[1]: "I"}
    import_corrections(run, put(tmp_path / "2.json", [{"pair_id": IDS[0], "label": "E"}]), path)
    assert labels(path, run) == {IDS[0]: "E", "feed": "C", IDS[1]: "I"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"pair_id": IDS[0], "label": "Z"}], "1 rows cannot be used, first row 1 .*label 'Z'.*E, S, C, I"),
        ([{"label": "E"}], r"row 1 \(no pair\)"),
        ([{"pair_id": IDS[0], "label": {"choices": ["E", "S"]}}], "row 1 .*choices"),
        ({"tasks": []}, "is not a list of tasks"),
        ("{", "is not a list of tasks"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, run: JudgedRun, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        import_corrections(run, put(tmp_path / "export.json", content), tmp_path / "o.jsonl")
    assert not (tmp_path / "o.jsonl").exists()


def test_a_file_that_is_no_json_is_named(tmp_path: Path, run: JudgedRun) -> None:
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        import_corrections(run, tmp_path / "export.json", tmp_path / "o.jsonl")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        import_corrections(run, tmp_path / "none.json", tmp_path / "o.jsonl")
