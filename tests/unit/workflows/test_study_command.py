"""The command `broadfast study`: from a config to pages, and from records alone."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.helpers.command import broadfast, text
from tests.helpers.study_run import Here, shop_run

CONFIG = """
rows = ["labels", "kl", "lrkd_kl", "shuffled"]
seeds = [1, 2]
folds = 1
records = "{root}/records"
bootstrap_resamples = 50
data = [{{ name = "shop", run = "{root}/shop" }}]
tuning = {{ learning_rate = [1e-3], epochs = [1], soft_label_weight = [1.0], alignment_weight = [0.1, 1.0] }}

[student]
model = "{models}/tiny-bert"
max_tokens = 32
train = {{ global_batch = 8, micro_batch = 8, precision = "fp32" }}
"""


@pytest.fixture
def config(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of one tiny shop whose runs are made in this process."""
    shop_run(tmp_path / "shop")
    monkeypatch.setattr("distill.study.study.execute", Here())
    monkeypatch.setattr("cluster.base.ray_session.ray_session", lambda settings: nullcontext())
    path = tmp_path / "small.toml"
    path.write_text(CONFIG.format(root=tmp_path, models=models), encoding="utf-8")
    return path


def test_a_study_from_its_config_to_its_pages_and_again_from_its_records(config: Path, tmp_path: Path) -> None:
    first = broadfast("study", config, "--out", tmp_path / "out", "-v")
    assert first.exit_code == 0, first.output
    assert "study.html" in text(first)
    report = json.loads((tmp_path / "out/study.json").read_text(encoding="utf-8"))
    assert report["name"] == "small" and report["data"][0]["rows"][0]["name"] == "labels"
    again = broadfast("study", config, "--out", tmp_path / "again", "--tables", "-v")
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "again/study.json").read_text(encoding="utf-8")) == report


def test_what_is_missing_is_said_with_the_way_out(config: Path, tmp_path: Path) -> None:
    tables = broadfast("study", config, "--out", tmp_path / "out", "--tables", "-v")
    assert tables.exit_code == 1 and "pairs.json does not exist. Run the study first" in text(tables)
    (tmp_path / "shop/7-judgements/manifest.json").unlink()
    run = broadfast("study", config, "--out", tmp_path / "out", "-v")
    assert run.exit_code == 1 and "lacks 7-judgements" in text(run)
    wrong = broadfast("study", config, "--set", "fold=3")
    assert wrong.exit_code == 2 and "fold: no such setting. Did you mean 'folds'?" in text(wrong)
