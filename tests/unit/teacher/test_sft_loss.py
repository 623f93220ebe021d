"""The loss of SFT: a mean over the tokens of answers, with the weights of verdicts and of answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import TrainSettings
from teacher.answer_tokens import verdict_tokens
from teacher.config import Full
from teacher.sft import (
    SftTask,
)  # fmt: skip


def test_the_loss_is_a_mean_over_answer_tokens(tmp_path: Path, llama_folder: Path) -> None:
    """Two micro batches of unlike length give the same mean as one batch of all."""
    said = ["It is a drill.\nVerdict: E", "The shopper wants a drill, and this case only holds one.\nVerdict: C"]
    rows = [{"pair_id": f"p{n}", "prompts": ["Query: drill " * n], "answers": [a]}
            for n, a in enumerate(said * 2, start=1)]  # fmt: skip
    task = SftTask(TrainSettings(precision="fp32"), 1, str(tmp_path), str(llama_folder), Full(), 200, 1.0)
    model = task.build()
    whole = task.collate(rows)
    assert whole["units"] == sum(len(task.tokenizer().encode(a)) + 1 for a in said * 2)
    total, _ = task.loss(model, whole)
    parts = [task.collate(rows[:1]), task.collate(rows[1:])]
    summed = sum(task.loss(model, part)[0].item() for part in parts)
    assert sum(part["units"] for part in parts) == whole["units"]
    assert summed == pytest.approx(total.item(), rel=1e-5)
    dev = task.summarise([r for part in parts for r in task.predict(model, part)])
    assert dev["loss"] == pytest.approx(total.item() / whole["units"], rel=1e-5)


def test_a_verdict_weight_counts_in_loss_and_units(tmp_path: Path, llama_folder: Path) -> None:
    rows = [{"pair_id": "p", "prompts": ["Query: drill", "Query: red drill"], "answers": ["Yes.\nVerdict: E"] * 2}]
    plain, heavy = (
        SftTask(TrainSettings(precision="fp32"), 1, str(tmp_path), str(llama_folder), Full(), 200, weight)
        for weight in (1.0, 4.0)
    )
    model = plain.build()
    batches = [task.collate(rows) for task in (plain, heavy)]
    verdicts = 2 * verdict_tokens(plain.tokenizer(), "Yes.\nVerdict: E")
    assert batches[1]["units"] == batches[0]["units"] + 3 * verdicts
    losses = [task.loss(model, batch)[0].item() for task, batch in zip((plain, heavy), batches, strict=True)]
    assert losses[0] < losses[1] < 4 * losses[0]
    dev = [task.summarise(task.predict(model, batch)) for task, batch in zip((plain, heavy), batches, strict=True)]
    for figures, loss, batch in zip(dev, losses, batches, strict=True):
        assert figures["loss"] == pytest.approx(loss / batch["units"], rel=1e-5), "the same measure as in training"
        assert figures["nll_per_token"] == pytest.approx(losses[0] / batches[0]["units"], rel=1e-5)


def test_an_answer_counts_by_its_weight(tmp_path: Path, llama_folder: Path) -> None:
    """Two answers that share a sequence: the second one at a quarter, in units and in the loss."""
    said = ["Yes.\nVerdict: E", "The shopper wants a drill.\nVerdict: E"]
    row = {"pair_id": "p", "prompts": ["Query: drill", "Query: red drill"], "answers": said}
    task = SftTask(TrainSettings(precision="fp32"), 1, str(tmp_path), str(llama_folder), Full(), 200, 2.0)
    model = task.build()
    losses, units = [], []
    for weights in ([1.0, 1.0], [1.0, 0.25], [1.0, 0.0]):
        batch = task.collate([row | {"weights": weights}])
        losses.append(task.loss(model, batch)[0].item())
        units.append(batch["units"])
    assert losses[1] == pytest.approx(0.25 * losses[0] + 0.75 * losses[2], rel=1e-5) and losses[2] < losses[1]
    assert units[1] == pytest.approx(0.25 * units[0] + 0.75 * units[2]) and units[2] < units[1]
    assert task.collate([row])["units"] == units[0]
