"""The benchmark for a GPU runs in small on a CPU, on torch and transformers alone, before it ever meets a card."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
ABSENT = ("ray", "vllm", "deepspeed", "peft", "accelerate")
RUN = """
import json, sys
sys.modules |= dict.fromkeys(%r)  # as if they were not installed
import gpu_check
rows = gpu_check.measure(gpu_check.SMALL)
figures = {figure.name: figure.value for figure in gpu_check.figures(rows)}
print(json.dumps({"rows": rows, "figures": figures}))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What it measures where neither Ray nor an engine nor DeepSpeed is installed."""
    command = [sys.executable, "-c", RUN % (ABSENT,)]
    found = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)}
    said = subprocess.run(command, cwd=BENCHMARKS, env=found, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout.splitlines()[-1])


def test_each_arm_is_measured_and_only_a_gpu_has_a_peak(told: dict[str, Any]) -> None:
    scored = {(row["arm"], row["pairs"]) for row in told["rows"] if row["share_of_matrix_rate"] is not None}
    assert scored >= {("served", 1), ("served", 4), ("served", 16)}
    steps = {row["arm"] for row in told["rows"] if row["loss"] is not None}
    assert steps == {"student", "sft_shared", "sft_separate", "dpo_shared", "dpo_separate"}
    assert all(row["pairs_per_s"] > 0 and row["planned_gb"] is not None for row in told["rows"] if row["loss"])
    assert all(row["peak_gb"] is None for row in told["rows"])


def test_answers_that_share_their_prompts_have_the_same_loss_as_each_by_itself(told: dict[str, Any]) -> None:
    figures, loss = told["figures"], {row["arm"]: row["loss"] for row in told["rows"]}
    assert figures["sft_loss_difference"] < 1e-4 and figures["dpo_loss_difference"] < 1e-4
    assert loss["sft_shared"] == pytest.approx(math.log(512), rel=0.1), "random weights know nothing of 512 tokens"
    assert loss["dpo_shared"] == pytest.approx(math.log(2), abs=1e-4), "before the first step both answers are level"


def test_no_figures_are_kept_of_a_run_without_a_gpu() -> None:
    kept = json.loads((BENCHMARKS / "results" / "gpu_check.json").read_text(encoding="utf-8"))
    assert kept["figures"] == [] or kept["machine"]["gpu"]
