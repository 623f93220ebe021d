"""`broadfast roll --judge` without a service: an export that the teacher finds worse is not rolled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import write_json
from mpcot.schemes.scheme import load_scheme
from serve.config import ServeSettings
from serve.watching import judged
from serve.watching.config import AnswerLogSettings
from tests.helpers.answer_logs import CODES, write_answers
from tests.helpers.command import broadfast, text
from tests.helpers.report_run import write_export
from tests.unit.workflows.conftest import no_ray
from workflows import judging
from workflows.config import load_config


@pytest.fixture
def rolled(
    run_dir: Path, config_file: Path, tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> list[Path]:
    """A run, a service with logged answers, and what was rolled in. The new export is the run's own."""
    write_json(run_dir / "config.json", load_config(config_file).model_dump(mode="json"))
    write_export(run_dir / "10-export", tmp_path / "bert")
    log = AnswerLogSettings(folder=write_answers(tmp_path / "log", 30))
    done: list[Path] = []

    def roll(export_dir: Path, allow_change: bool) -> list[str]:
        done.append(export_dir)
        return ["one"]

    monkeypatch.setattr("cluster.base.ray_session.ray_session", no_ray)
    monkeypatch.setattr(judging, "running_export", lambda: (ServeSettings(answer_log=log), tmp_path / "before"))
    monkeypatch.setattr("serve.on_ray.rollout.roll_export", roll)
    return done


def agreeing(run_dir: Path, best: str) -> Any:
    """What exports say: the one in the folder `best` always what the teacher says, the other one never."""

    def labels(export: Path, pairs: list[dict[str, Any]], scheme: Any) -> list[str]:
        (folder,) = (run_dir / "watch").glob("roll-*")
        votes = [judged.votes_of(folder)[pair["pair_id"]] for pair in pairs]
        return votes if export.name == best else [CODES[CODES.index(vote) - 1] for vote in votes]

    return labels


@pytest.mark.parametrize(("best", "code"), [("before", 1), ("10-export", 0)])
def test_only_what_is_not_worse_is_rolled_in(
    rolled: list[Path], run_dir: Path, monkeypatch: pytest.MonkeyPatch, best: str, code: int
) -> None:
    monkeypatch.setattr(judged, "labels_by", agreeing(run_dir, best))
    done = broadfast("roll", run_dir / "10-export", "--judge", 20, "-v")
    assert done.exit_code == code, done.output
    assert rolled == ([] if code else [run_dir / "10-export"])
    said = "-100.0 points against" if code else "+100.0 points against"
    assert said in text(done) and "on 20 pairs" in text(done)
    assert ("was not rolled in" in text(done) and "roll without --judge" in text(done)) == bool(code)


def test_a_service_that_keeps_no_answers_cannot_be_judged(
    rolled: list[Path], run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "running_export", lambda: (ServeSettings(), run_dir / "before"))
    done = broadfast("roll", run_dir / "10-export", "--judge", 20, "-v")
    assert done.exit_code == 1 and "keeps no answers (serve.answer_log)" in text(done) and rolled == []


@pytest.mark.parametrize("flags", [(), ("--allow-change",)])
def test_answers_of_another_form_are_allowed_by_the_flag_alone(
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("cluster.base.ray_session.ray_session", no_ray)
    monkeypatch.setattr("serve.on_ray.rollout.roll_export", lambda _, allow_change: asked.append(allow_change) or [])
    assert broadfast("roll", tmp_path, *flags, "-v").exit_code == 0
    assert asked == [bool(flags)]


def test_labels_of_an_export_are_in_the_teachers_scheme(tmp_path: Path) -> None:
    export = write_export(tmp_path / "export", tmp_path / "bert")
    pairs = [{"query": "red case", "title": f"lamp {n}", "attributes": [("colour", "red")]} for n in range(3)]
    assert set(judged.labels_by(export, pairs, load_scheme("esci"))) <= set(CODES)
    with pytest.raises(UserError, match="gives the labels E, S, C, I, and the teacher 1, 0: name another run"):
        judged.labels_by(export, pairs, load_scheme("binary"))
