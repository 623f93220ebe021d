"""A run in which nobody is asked goes from pairs to a report, and its export scores a pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.base.tables import read_table
from serve.config import ServeSettings
from serve.scoring.scorer import Scorer
from tests.helpers.command import broadfast, text
from tests.helpers.one_worker import training_here
from tests.helpers.small_run import small_config
from tests.helpers.tiny_bert import tiny_bert
from workflows.config import load_config
from workflows.runner import run_stages, select
from workflows.stages import stages_of

NAMES = ("intent", "attributes", "rules")


@pytest.fixture(scope="module")
def run_dir(local_ray: None, group: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without any teacher, on judgements of the catalogue that agree with its labels."""
    folder = tmp_path_factory.mktemp("given")
    tiny_bert(folder / "tiny-bert")
    config, given, run_dir = small_config(folder / "small.toml", folder), folder / "given.jsonl", folder / "run"
    changes = [f"source.judgements={given}", "teacher.tuning=none", "teacher.model=", "judge.engine=none"]
    plain = load_config(config, ["teacher.tuning=none"])
    run_stages(plain, folder / "first", select(None, "pairs", stages_of(plain)))
    pairs = read_table(folder / "first/1-pairs/pairs.parquet").to_pylist()
    with given.open("w", encoding="utf-8") as file:
        for pair in pairs:
            said = {key: pair[key] for key in ("query", "product_id", "locale")} | {"confidence": 0.9}
            for name in NAMES:
                row = {"perspective": name, "rationale": f"{name}: {pair['title']}.", "verdict": pair["label"] or "S"}
                file.write(json.dumps(said | row) + "\n")
    loaded = load_config(config, changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.lrkd.stage.run_training", training_here)
        run_stages(loaded, run_dir, stages_of(loaded))
    return run_dir


def test_the_stages_without_a_teacher_balance(run_dir: Path) -> None:
    assert sorted(path.parent.name for path in run_dir.glob("*/manifest.json")) == sorted(
        ["1-pairs", "7-judgements", "8-targets", "9-student", "10-export", "11-report"]
    )
    checked = broadfast("verify", run_dir)
    assert checked.exit_code == 0, text(checked)


def test_the_report_knows_what_was_judged_elsewhere(run_dir: Path) -> None:
    report = json.loads((run_dir / "11-report/report.json").read_text(encoding="utf-8"))
    assert report["headline"]["judges"]["teacher"]["accuracy"] == 1
    assert report["teacher_by_stage"] == [] and report["answers"] == {}
    page = (run_dir / "11-report/report.html").read_text(encoding="utf-8")
    assert "Rationales kept" not in page and "Samples from the test split" in page


def test_its_export_scores_and_explains_a_pair(run_dir: Path) -> None:
    scorer = Scorer.load(run_dir / "10-export", ServeSettings(precision="fp32"))
    pair = read_table(run_dir / "1-pairs/pairs.parquet").to_pylist()[0]
    found = scorer.score([{"query": pair["query"], "title": pair["title"]}])
    assert found.probabilities.shape == (1, 4) and found.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert found.verdicts is not None and found.verdicts.shape == (1, 3, 4)
    index = read_table(run_dir / "10-export/index.parquet").to_pylist()
    assert all(row["rationales"][0].startswith("intent: ") for row in index) and index
