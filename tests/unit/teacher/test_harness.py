"""What must not change a training: how a batch is cut into passes, and where optimizer and parameters lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.config import Offload
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
