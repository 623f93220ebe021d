"""Runs with judgements from elsewhere: taken where they are, asked for where they are not, and written again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.base.stage_folder import read_manifest
from cluster.base.tables import read_table
from tests.helpers.command import broadfast, text
from tests.unit.workflows.test_run_config import LEAST
from workflows.config import RunConfig
from workflows.stages import find_stage, stages_of

NAMES = ("intent", "attributes", "rules")
NOBODY = ("--set", "teacher.tuning=none", "--set", "judge.engine=none", "--set", "teacher.model=")


@pytest.fixture
def pairs(config_file: Path, tmp_path: Path, without_ray: None) -> list[dict[str, Any]]:
    """The catalogue's pairs, from a run of their own."""
    assert broadfast("pairs", config_file, "--out", tmp_path / "first").exit_code == 0
    return read_table(tmp_path / "first/1-pairs/pairs.parquet").to_pylist()


def write(path: Path, pairs: list[dict[str, Any]], names: tuple[str, ...] = NAMES) -> Path:
    keys = ("query", "product_id", "locale")
    lines = [
        {key: pair[key] for key in keys}
        | {"perspective": name, "rationale": f"From {name}, {pair['title']} fits.", "verdict": pair["label"] or "S"}
        | {"confidence": 0.85, "origin": "people"}
        for pair in pairs
        for name in names
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def judged(run_dir: Path) -> list[dict[str, Any]]:
    return read_table(run_dir / "7-judgements/judgements.parquet").to_pylist()


def counts(run_dir: Path) -> dict[str, int]:
    manifest = read_manifest(run_dir / "7-judgements")
    assert manifest is not None
    return manifest["counts"]


def test_with_nobody_asked_only_judged_pairs_are_left(
    config_file: Path, tmp_path: Path, pairs: list[dict[str, Any]], wide: None
) -> None:
    given, run_dir = write(tmp_path / "given.jsonl", pairs[:50]), tmp_path / "run"
    options = ("--set", f"source.judgements={given}", *NOBODY, "--out", run_dir)
    done = broadfast("run", config_file, *options, "--to", "judgements")
    assert done.exit_code == 0, done.output
    assert counts(run_dir) == {"requested": 60, "judged": 50, "left_out": 10, "failed_answers": 0}
    assert not (run_dir / "7-judgements/answers").exists()
    rows = {row["pair_id"]: row for row in judged(run_dir)}
    assert set(rows) == {pair["pair_id"] for pair in pairs[:50]}
    for pair in pairs[:50]:
        row = rows[pair["pair_id"]]
        assert row["vote"] == (pair["label"] or "S") and row["origin"] == ["people"] * 3 and row["agreement"] == 1
        assert max(row["soft"]) == pytest.approx(0.85) and sorted(row["soft"])[0] == pytest.approx(0.05)
    assert broadfast("verify", run_dir).output.count("yes") == 2
    assert "Judgements" in text(broadfast("inspect", run_dir))


def test_a_run_s_judgements_read_back_as_they_were(
    config_file: Path, tmp_path: Path, pairs: list[dict[str, Any]], models: Path
) -> None:
    """The scripted teacher judges; what is written of it makes the same judgements without it."""
    own, again, file = tmp_path / "own", tmp_path / "again", tmp_path / "said.jsonl"
    run = ("run", config_file, "--to", "judgements")
    assert broadfast(*run, "--set", "teacher.tuning=none", "--out", own).exit_code == 0
    said = broadfast("judgements", own, file)
    assert said.exit_code == 0 and f"{file}: " in text(said) and "of tiny-llama" in text(said)
    assert broadfast(*run, "--set", f"source.judgements={file}", *NOBODY, "--out", again).exit_code == 0
    before, after = ({row["pair_id"]: row for row in judged(folder)} for folder in (own, again))
    assert before.keys() == after.keys()
    for key, row in before.items():
        assert [after[key][name] for name in ("vote", "verdicts", "rationales")] == [
            row[name] for name in ("vote", "verdicts", "rationales")
        ]
        assert after[key]["soft"] == pytest.approx(row["soft"], abs=1e-5)
    assert {who for row in after.values() for who in row["origin"]} <= {"tiny-llama", None}


def test_the_teacher_is_asked_for_the_rest(
    config_file: Path, tmp_path: Path, pairs: list[dict[str, Any]], wide: None
) -> None:
    """Ten pairs are judged from all perspectives, ten from one of them, and the others from none."""
    given, run_dir, log = tmp_path / "given.jsonl", tmp_path / "run", tmp_path / "asked"
    write(given, pairs[:10])
    some = write(tmp_path / "some.jsonl", pairs[10:20], ("rules",))
    given.write_text(given.read_text(encoding="utf-8") + some.read_text(encoding="utf-8"), encoding="utf-8")
    engine = f'{{kind = "scripted", failure_share = 0.0, log = "{log}"}}'
    options = ("--set", f"source.judgements={given}", "--set", "teacher.tuning=none", "--set", f"engine={engine}")
    done = broadfast("run", config_file, *options, "--out", run_dir, "--to", "judgements")
    assert done.exit_code == 0, done.output
    assert len(log.read_text(encoding="utf-8").splitlines()) == 10 * 2 + 40 * 3
    assert counts(run_dir) == {"requested": 60, "judged": 60, "failed": 0, "failed_answers": 0}
    origins = {row["pair_id"]: row["origin"] for row in judged(run_dir)}
    told = Counter(tuple(origins[pair["pair_id"]]) for pair in pairs[:20])
    assert told == {("people",) * 3: 10, ("teacher", "teacher", "people"): 10}
    assert {tuple(origins[pair["pair_id"]]) for pair in pairs[20:]} == {("teacher",) * 3}
    manifest = read_manifest(run_dir / "7-judgements")
    assert manifest is not None and manifest["figures"]["origins"] == {"people": 40, "teacher": 140}
    assert broadfast("verify", run_dir).output.count("yes") == 2


def test_a_teacher_with_nothing_left_to_judge_is_not_started(
    config_file: Path, tmp_path: Path, pairs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpcot.asking.generate._run_workers", None)
    options = ("--set", f"source.judgements={write(tmp_path / 'given.jsonl', pairs)}", "--set", "teacher.tuning=none")
    done = broadfast("run", config_file, *options, "--out", tmp_path / "run", "--to", "judgements")
    assert done.exit_code == 0, done.output
    assert counts(tmp_path / "run")["judged"] == 60


def test_a_fitted_vote_is_written_with_its_figures(
    config_file: Path, tmp_path: Path, pairs: list[dict[str, Any]], wide: None
) -> None:
    """`rules` is right, `intent` always says S: the fit gives `rules` the vote, which plain counting may not."""
    given = tmp_path / "given.jsonl"
    lines = [json.loads(line) for line in write(given, pairs).read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["verdict"] = "S" if line["perspective"] != "rules" else line["verdict"]
    given.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    options = ("--set", f"source.judgements={given}", *NOBODY, "--set", "judge.fit=true", "--out", tmp_path / "run")
    done = broadfast("run", config_file, *options, "--to", "judgements")
    assert done.exit_code == 0, done.output
    manifest = read_manifest(tmp_path / "run/7-judgements")
    assert manifest is not None
    fit = manifest["figures"]["fit"]
    assert fit["weights"]["rules"] > 0.8 and sum(fit["weights"].values()) == pytest.approx(1)
    assert fit["temperatures"]["rules"] < 1 < fit["temperatures"]["intent"]
    assert fit["log_loss_after"] < fit["log_loss_before"] and fit["dev_pairs"] > 0
    assert all(row["vote"] == row["verdicts"][2] for row in judged(tmp_path / "run"))
    quality = manifest["figures"]["quality"]["test"]
    assert quality["vote"]["accuracy"] == quality["rules"]["accuracy"] == 1
    assert broadfast("verify", tmp_path / "run").output.count("yes") == 2


def test_a_changed_file_of_judgements_makes_the_pairs_anew(
    config_file: Path, tmp_path: Path, pairs: list[dict[str, Any]]
) -> None:
    given = write(tmp_path / "given.jsonl", pairs[:9])
    options = ("--set", f"source.judgements={given}", *NOBODY, "--out", tmp_path / "run")
    assert broadfast("pairs", config_file, *options).exit_code == 0
    write(given, pairs[:8])
    refused = broadfast("pairs", config_file, *options)
    assert refused.exit_code == 1 and "content.source.judgements" in text(refused)


def test_only_a_run_with_judgements_depends_on_the_perspectives_from_the_start() -> None:
    plain = RunConfig(**LEAST)
    given = RunConfig(**LEAST | {"source": {"kind": "catalogue", "judgements": "given.jsonl"}})
    fields = [find_stage("pairs", stages_of(config)).config.model_fields for config in (plain, given)]
    assert ["perspectives" in own for own in fields] == [False, True]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"judge": {"engine": "none"}}, "judge.engine 'none' asks nobody, but teacher.tuning is 'sft\\+dpo'"),
        ({"judge": {"engine": "none"}, "teacher": {"tuning": "none"}}, "name the file of judgements in source.judg"),
        ({"teacher": {"tuning": "none"}}, "teacher.model: name a chat model, or ask one behind an address"),
    ],
)
def test_a_run_without_judge_or_judgements_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RunConfig(**LEAST | change)


def test_a_run_folder_alone_is_no_command(run_dir: Path, tmp_path: Path) -> None:
    refused = broadfast("judgements", run_dir)
    assert refused.exit_code == 2 and "name the file to write its judgements to" in text(refused)
    unfinished = broadfast("judgements", tmp_path, tmp_path / "file.jsonl")
    assert unfinished.exit_code == 2 and "is not a run folder" in text(unfinished)


def test_judgements_without_a_perspective_cover_candidates(
    config_file: Path, tmp_path: Path, pairs: list[dict[str, Any]], wide: None
) -> None:
    """The pairs of the source are judged by perspective, the candidates as a whole and within a budget."""
    train = [pair for pair in pairs if pair["split"] == "train"][:3]
    more = [{**pair, "product_id": f"new {n}", "title": "A thing"} for n, pair in enumerate(train)]
    lines = "".join(json.dumps({key: row[key] for key in ("query", "product_id", "title")}) + "\n" for row in more)
    (tmp_path / "more.jsonl").write_text(lines, encoding="utf-8")
    given, run_dir = write(tmp_path / "given.jsonl", pairs), tmp_path / "run"
    whole = [
        {"query": row["query"], "product_id": row["product_id"], "verdict": "I", "confidence": 0.9} for row in more
    ]
    given.write_text(given.read_text() + "".join(json.dumps(line) + "\n" for line in whole), encoding="utf-8")
    sources = ("--set", f"source.judgements={given}", "--set", f"source.candidates={tmp_path / 'more.jsonl'}")
    budget = sum(pair["split"] == "unlabelled" for pair in pairs) + 2
    options = (*sources, "--set", f"judge.budget_pairs={budget}", *NOBODY, "--out", run_dir)
    done = broadfast("run", config_file, *options, "--to", "judgements")
    assert done.exit_code == 0, done.output
    assert counts(run_dir) == {"requested": 62, "judged": 62, "left_out": 0, "failed_answers": 0}
    voted = [row for row in judged(run_dir) if row["verdicts"] == [None] * 3]
    assert [(row["vote"], row["agreement"]) for row in voted] == [("I", 1.0)] * 2
    assert voted[0]["soft"] == pytest.approx([0.1 / 3, 0.1 / 3, 0.1 / 3, 0.9])
    manifest = read_manifest(run_dir / "7-judgements")
    assert manifest is not None and manifest["figures"]["origins"] == {"people": 180, "file": 2}
    assert broadfast("verify", run_dir).output.count("yes") == 2
    file, again = tmp_path / "said.jsonl", tmp_path / "again"
    assert broadfast("judgements", run_dir, file).exit_code == 0
    options = ("--set", f"source.judgements={file}", *sources[2:], "--set", f"judge.budget_pairs={budget}", *NOBODY)
    assert broadfast("run", config_file, *options, "--out", again, "--to", "judgements").exit_code == 0
    for before, after in zip(judged(run_dir), judged(again), strict=True):
        exact = ("pair_id", "vote", "agreement", "verdicts", "origin")
        assert [after[name] for name in exact] == [before[name] for name in exact]
        assert after["soft"] == pytest.approx(before["soft"], abs=1e-5)
