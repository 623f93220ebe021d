"""What must not change a training: how a batch is cut into passes, and where optimizer and parameters lie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.config import Offload
from teacher.config import Lora
from teacher.sft import SftTask
from tests.helpers.one_worker import train_here
from tests.helpers.tiny_llama import tiny_llama
from tests.helpers.training_tasks import settings, sft_task

IDS = torch.arange(5, 69).reshape(2, 32)


pytestmark = pytest.mark.usefixtures("group")


def curve(folder: Path, model: Path, patch: pytest.MonkeyPatch, **changes: Any) -> list[float]:
    """The losses of one epoch, training and held-out."""
    folder.mkdir()
    task = sft_task(folder, model, settings(epochs=1, **changes))
    return [row["loss"] for row in train_here(task, folder / "out", patch)]


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=IDS).logits


CPU = Offload(optimizer="cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch": 1},
        {"micro_batch": 8},
        {"gradient_checkpointing": True},
        {"zero_stage": 1, "offload": CPU},
        {"zero_stage": 2, "offload": CPU},
        {"zero_stage": 3, "offload": Offload(optimizer="cpu", parameters="cpu")},
    ],
    ids=["accumulated", "at-once", "recomputed", "zero-1-offload", "zero-2-offload", "zero-3-offload"],
)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_same_is_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: Any, tied: bool) -> None:
    """Answers are of unlike length, so a mean of means would differ; the saved folder answers alike too."""
    model = tiny_llama(tmp_path / "llama", tied)
    plain = curve(tmp_path / "plain", model, monkeypatch, micro_batch=4)
    other = curve(tmp_path / "other", model, monkeypatch, **changes)
    assert other == pytest.approx(plain, rel=2e-4) and plain[-1] < plain[0]
    ends = [logits(tmp_path / run / "out/model") for run in ("plain", "other")]
    assert torch.allclose(*ends, atol=2e-3) and not torch.allclose(ends[0], logits(model), atol=0.1)


@dataclass
class Looked(SftTask):
    """Notes how many numbers of each parameter this worker has in memory right after the model was loaded."""

    def build(self) -> Any:
        model = super().build()
        held = {name: parameter.numel() for name, parameter in model.named_parameters()}
        (Path(self.folder) / "held").write_text(json.dumps(held))
        return model


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_with_zero_3_no_worker_loads_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    model = tiny_llama(tmp_path / "llama", tied)
    task = sft_task(tmp_path, model, settings(3, epochs=1, gradient_checkpointing=True), Lora(rank=4, alpha=8))
    history = train_here(Looked(**vars(task)), tmp_path / "out", monkeypatch)
    held = json.loads((tmp_path / "held").read_text())
    assert {name: count for name, count in held.items() if "lora_" not in name and count} == {}
    assert all(count for name, count in held.items() if "lora_" in name) and history[-1]["loss"] < history[0]["loss"]
