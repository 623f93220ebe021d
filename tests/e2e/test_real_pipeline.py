"""The whole pipeline on real engines and small real models, a few rows each: behaviour, not only exit codes."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.base.free_port import free_port
from distill.study.data import content_digest
from tests.e2e.small import ROOT, SMALL, changes, no_models
from tests.helpers.command import broadfast, text

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(no_models(), reason="no models: make setup"),
]


def manifest(run_dir: Path, stage: str) -> dict[str, Any]:
    return json.loads((run_dir / stage / "manifest.json").read_text(encoding="utf-8"))


def table(run_dir: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(run_dir / name).to_pylist()


def history(run_dir: Path, stage: str, split: str) -> list[dict[str, Any]]:
    lines = (run_dir / stage / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def test_all_stages_finish_and_balance(run_dir: Path) -> None:
    assert len(list(run_dir.glob("*/manifest.json"))) == 11
    checked = broadfast("verify", run_dir)
    assert checked.exit_code == 0, text(checked)


def test_a_study_can_tell_the_run_from_others(run_dir: Path) -> None:
    assert re.fullmatch("[0-9a-f]{16}", content_digest(run_dir))


def test_vllm_answers_in_the_enforced_form_with_label_logprobs(run_dir: Path) -> None:
    answers = [row for part in ("kept", "filtered") for row in table(run_dir, f"2-rationales/{part}.parquet")]
    assert answers
    for row in answers:
        assert (
            row["verdict"] in "ESCI" and len(row["rationale"]) >= 10
        )  # of 20 or more, half at least are whole sentences
        assert len(row["logprobs"]) == 4 and 0 < sum(map(math.exp, row["logprobs"])) < 1.01


def test_sft_lowers_the_held_out_loss_and_vllm_loads_what_it_left(run_dir: Path) -> None:
    dev = history(run_dir, "3-sft", "dev")
    assert dev[-1]["loss"] < 0.9 * dev[0]["loss"]
    assert manifest(run_dir, "4-samples")["counts"]["requested"] > 0


def test_dpo_starts_at_the_reference_and_widens_the_margin(run_dir: Path) -> None:
    rows = history(run_dir, "6-dpo", "train")
    assert abs(rows[0]["margin"]) < 0.05 and math.isclose(rows[0]["loss"], math.log(2), abs_tol=0.03)
    assert rows[-1]["margin"] > rows[0]["margin"] + 0.02


def test_the_merged_teacher_has_the_same_logits_in_vllm_and_in_transformers(run_dir: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, told = run_dir / "6-dpo" / "model", tmp_path / "told.json"
    texts = [f"Query: {row['query']} Product: {row['title']}" for row in table(run_dir, "1-pairs/pairs.parquet")[:6]]
    subprocess.run(
        [sys.executable, "-m", "tests.helpers.vllm_logprobs", str(model), str(told), *texts], cwd=ROOT, check=True
    )
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert plain.config.tie_word_embeddings
    for row in json.loads(told.read_text(encoding="utf-8")):
        ids = torch.tensor([row["ids"]])
        with torch.inference_mode():
            logprobs = plain(ids).logits[0, :-1].log_softmax(-1)
        found = logprobs.gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(found, torch.tensor(row["logprobs"]), atol=1e-4, rtol=1e-4)


def test_preferences_hold_one_right_and_one_wrong_verdict(run_dir: Path) -> None:
    gold = {row["pair_id"]: row["label"] for row in table(run_dir, "1-pairs/pairs.parquet")}
    for row in table(run_dir, "5-preferences/preferences.parquet"):
        assert row["chosen"].endswith(f"Verdict: {gold[row['pair_id']]}")
        assert not row["rejected"].endswith(f"Verdict: {gold[row['pair_id']]}")
        assert row["chosen_reference_logprob"] < 0 and row["rejected_reference_logprob"] < 0


def test_judgements_are_distributions_with_a_vote(run_dir: Path) -> None:
    for row in table(run_dir, "7-judgements/judgements.parquet"):
        assert math.isclose(sum(row["soft"]), 1.0, abs_tol=1e-3)
        assert row["vote"] in row["verdicts"]


def test_the_student_learns_and_its_export_judges_alike(run_dir: Path) -> None:
    lines = (run_dir / "9-student/lrkd/history.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if row["split"] == "train"]
    epoch = len(losses) // SMALL["student.train.epochs"]
    assert sum(losses[-epoch:]) < 0.9 * sum(losses[:epoch])
    assert manifest(run_dir, "10-export")["figures"]["largest_logit_difference"] <= 1e-4


def test_a_finished_run_is_skipped_and_a_foreign_one_refused(run_dir: Path) -> None:
    """In processes of their own, since a run points its output past whoever captures it."""
    command = [sys.executable, "-m", "workflows.cli", "run", "workflows/configs/demo.toml", "--out", str(run_dir)]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *changes(), *more], cwd=ROOT, capture_output=True, text=True, check=False)

    again = run()
    assert again.returncode == 0 and again.stdout.count("skipped") == 11, again.stdout + again.stderr
    other = run("--set=dpo.beta=0.5")
    assert other.returncode == 1 and "dpo.beta: 0.1 -> 0.5" in other.stderr, other.stdout + other.stderr


@pytest.fixture
def url(run_dir: Path) -> Iterator[str]:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "workflows.cli",
        "serve",
        str(run_dir / "10-export"),
        "--set",
        f"serve.port={port}",
    ]
    settings = ["--set", "cluster.num_cpus=2", "--set", "cluster.object_store_mb=128"]
    server = subprocess.Popen([*command, *settings], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert server.stdout is not None
        assert any("listening" in line for line in server.stdout), "it never got ready"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        assert server.wait(timeout=600) == 0


def test_the_served_student_answers_as_the_trained_one(run_dir: Path, url: str) -> None:
    from distill.student.model import read_student_config
    from mpcot.temperature import scaled
    from serve.on_ray.running_service import score_once

    pairs = {row["pair_id"]: row for row in table(run_dir, "1-pairs/pairs.parquet")}
    predicted = [r for r in table(run_dir, "9-student/lrkd/predictions.parquet") if r["split"] == "test"][:5]
    config = read_student_config(run_dir / "10-export")
    abs_tol = 0.01 * max(1, 1 / config.temperature)  # rounding of logits grows where they are divided by less than 1
    for row in predicted:
        pair = pairs[row["pair_id"]]
        product = {"id": pair["product_id"], "title": pair["title"], "brand": pair["brand"]}
        result = score_once(url, pair["query"], [product])["results"][0]
        (expected,) = scaled(np.array([row["probabilities"]]), config.temperature, config.label_bias)
        assert [result["probabilities"][code] for code in "ESCI"] == pytest.approx(expected, abs=abs_tol)
        assert result["label"] == max(result["probabilities"], key=result["probabilities"].__getitem__)
        assert set(result["perspectives"]) == {"intent", "attributes", "rules"}
