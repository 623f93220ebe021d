"""`broadfast watch` with the scripted engine: the teacher's votes beside the labels that were served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.base.stage_folder import write_json
from cluster.base.tables import read_table
from tests.helpers.answer_logs import write_answers
from tests.helpers.command import broadfast, text
from workflows.config import load_config


@pytest.fixture
def finished(run_dir: Path, config_file: Path, without_ray: None) -> Path:
    """A run whose teacher has been trained, with its config."""
    write_json(run_dir / "config.json", load_config(config_file).model_dump(mode="json"))
    return run_dir


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "watch/watch.jsonl").read_text(encoding="utf-8").splitlines()]


def test_served_labels_are_compared_with_the_votes(finished: Path, tmp_path: Path, wide: None) -> None:
    log, folder = write_answers(tmp_path / "log", 30), finished / "watch/monday"
    done = broadfast("watch", finished, log, "--pairs", 40, "--out", folder, "-v")
    assert done.exit_code == 0, done.output
    sample = {row["pair_id"]: row for row in read_table(folder / "sample.parquet").to_pylist()}
    votes = {row["pair_id"]: row["vote"] for row in read_table(folder / "7-judgements/judgements.parquet").to_pylist()}
    assert len(sample) == 40 and votes.keys() <= sample.keys() and len(votes) > 35
    (line,) = lines(finished)
    right = sum(vote == sample[pair]["served"] for pair, vote in votes.items()) / len(votes)
    assert line["accuracy"]["value"] == pytest.approx(right)
    assert line["accuracy"]["low"] < right < line["accuracy"]["high"]
    assert (line["folder"], line["judged"], line["models"]) == ("monday", len(votes), ["shop@1"])
    assert sum(map(sum, line["confusion"])) == len(votes)
    assert f"accuracy of the served labels: {right:.3f} (95 % interval" in text(done)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["teacher"]["model"] == str((finished / "6-dpo/model").resolve()), "the teacher as it was trained"


def test_the_same_call_asks_nobody_again_and_a_further_night_makes_a_series(finished: Path, tmp_path: Path) -> None:
    log, asked = write_answers(tmp_path / "log", 10), tmp_path / "asked"
    config = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    write_json(finished / "config.json", config | {"engine": config["engine"] | {"log": str(asked)}})
    first = ("watch", finished, log, "--pairs", 8, "-v", "--out", finished / "watch/monday")
    assert broadfast(*first).exit_code == 0
    count = len(asked.read_text(encoding="utf-8").splitlines())
    write_answers(tmp_path / "log", 1, model="shop@2")
    again = broadfast(*first)
    assert again.exit_code == 0 and "finished before" in again.output
    assert count >= 3 * 8 and len(asked.read_text(encoding="utf-8").splitlines()) == count
    assert broadfast(*first[:-1], finished / "watch/tuesday").exit_code == 0
    assert [(line["folder"], line["models"]) for line in lines(finished)] == [
        ("monday", ["shop@1"]), ("tuesday", ["shop@2"]),
    ]  # fmt: skip
    other = broadfast(*first[:4], 9, *first[5:])
    assert other.exit_code == 2 and "holds another sample" in text(other)


def test_what_cannot_be_judged_is_said(finished: Path, tmp_path: Path) -> None:
    empty = broadfast("watch", finished, tmp_path / "nothing")
    assert empty.exit_code == 1 and "holds no logged answers" in text(empty)
    log = write_answers(tmp_path / "log", 2)
    config = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    nobody = {"judge": config["judge"] | {"engine": "none"}, "teacher": {"model": "", "tuning": "none"}}
    given = {"source": config["source"] | {"judgements": "given.jsonl"}}
    write_json(finished / "config.json", config | nobody | given)
    alone = broadfast("watch", finished, log)
    assert alone.exit_code == 1 and "has asked no teacher" in text(alone)
    assert "is not a run folder" in text(broadfast("watch", tmp_path, log))
