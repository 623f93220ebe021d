"""A training that gets worse on held-out rows: the best weights are saved, and after a restart too."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.training.arrow_rows import write_rows
from teacher.config import Full, Lora, Tuning
from teacher.sft import SftTask, to_sequences
from tests.helpers.one_worker import train_here
from tests.helpers.training_tasks import examples, settings

pytestmark = pytest.mark.usefixtures("group")


@dataclass
class Wanted(SftTask):
    """Best where the held-out loss is `wanted`, which it passes on its way down; fails in the forward pass `at`."""

    at: int = 0
    wanted: float = 3.0

    def loss(self, model: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, float]]:
        self.at -= 1
        if self.at == 0:
            raise InterruptedError
        return super().loss(model, batch)

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, float]:
        return {"loss": abs(super().summarise(records)["loss"] - self.wanted)}


def task(folder: Path, model: Path, at: int = 0, tuning: Tuning | None = None, **changes: Any) -> Wanted:
    """Two steps of two passes in each of six epochs."""
    write_rows(folder / "train.arrow", to_sequences(examples(16), 1))
    write_rows(folder / "dev.arrow", to_sequences(examples(6, start=1001), 1))
    own = settings(epochs=6, learning_rate=3e-2, checkpoint_every_steps=3, schedule="constant", **changes)
    return Wanted(own, 5, str(folder), str(model), tuning or Full(), 128, 1.0, at)


def held_out(history: list[dict[str, Any]]) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in history if row["split"] == "dev"}


def kept_steps(history: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in history if row.get("kept")]


def loss_of_folder(own: SftTask, folder: Path) -> float:
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return own.summarise(own.predict(model, own.collate(list(own.dev_rows()))))["loss"]


@pytest.mark.parametrize(
    ("tuning", "wanted", "zero"), [(Full(), 3.0, 0), (Full(), 3.0, 3), (Lora(rank=8, alpha=64), 5.9, 0)]
)
def test_the_weights_of_the_best_evaluation_are_saved(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuning: Tuning, wanted: float, zero: int
) -> None:
    own = task(tmp_path, llama_folder, tuning=tuning, keep="best", best_by="loss", zero_stage=zero)
    own.wanted = wanted
    history = train_here(own, tmp_path / "out", monkeypatch)
    losses = held_out(history)
    best = min(losses, key=losses.__getitem__)
    assert kept_steps(history) == [best] and list(losses) == [0, 2, 4, 6, 8, 10, 12]
    assert 0 < best < 12 and losses[12] > losses[best] + 0.1, "else the test shows nothing"
    assert loss_of_folder(own, tmp_path / "out/model") == pytest.approx(losses[best], abs=1e-4)


def test_without_it_the_last_weights_are_saved(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = task(tmp_path, llama_folder)
    history = train_here(own, tmp_path / "out", monkeypatch)
    assert kept_steps(history) == [12]
    assert loss_of_folder(own, tmp_path / "out/model") == pytest.approx(held_out(history)[12], abs=1e-4)


@pytest.mark.parametrize("at", [17, 19], ids=["after the best, before its checkpoint", "after its checkpoint"])
def test_an_early_stop_and_its_best_weights_survive_a_restart(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Best at step 8, stopped after the evaluation of step 10; the disk beside the checkpoints is lost."""
    changes: dict[str, Any] = {"keep": "best", "best_by": "loss", "patience_evaluations": 1}
    plain = train_here(task(tmp_path, llama_folder, **changes), tmp_path / "plain", monkeypatch)
    own = task(tmp_path, llama_folder, at=at, **changes)
    with pytest.raises(InterruptedError):
        train_here(own, tmp_path / "out", monkeypatch)
    assert not (tmp_path / "out/model").exists()
    shutil.rmtree(tmp_path / "out/checkpoints")
    history = train_here(own, tmp_path / "out", monkeypatch)
    assert kept_steps(history) == kept_steps(plain) == [8] and history[-1]["step"] == 10
    assert held_out(history) == held_out(plain)
    weights = [AutoModelForCausalLM.from_pretrained(tmp_path / run / "model").state_dict() for run in ("plain", "out")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_training_of_so_many_steps_ends_with_an_evaluation(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = train_here(task(tmp_path, llama_folder, steps=5), tmp_path / "out", monkeypatch)
    assert list(held_out(history)) == [0, 2, 4, 5] and kept_steps(history) == [5]


def test_heads_learn_at_their_own_rate(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = task(tmp_path, llama_folder, steps=1, head_learning_rate=0.3)
    monkeypatch.setattr(own, "is_head", lambda name: name == "model.norm.weight")
    train_here(own, tmp_path / "out", monkeypatch)
    before, after = (
        AutoModelForCausalLM.from_pretrained(at).state_dict() for at in (llama_folder, tmp_path / "out/model")
    )
    # The first step of Adam is the learning rate in every direction that has a gradient.
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert moved.pop("model.norm.weight") == pytest.approx(0.3, rel=1e-2)
    assert set(moved.values()) != {0.0} and max(moved.values()) == pytest.approx(3e-2, rel=1e-2)
