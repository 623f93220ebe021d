"""Losses and gradients are those of TRL's trainers on the same model and batch, in fp32."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.config import TrainSettings
from mpcot.asking.prompts import answer
from teacher.config import DpoSettings, Full
from teacher.dpo import DpoTask
from teacher.model import load_tokenizer
from teacher.preferences.reference_logprobs import ReferenceScorer
from teacher.sft import SftTask

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

RELATIVE = 1e-5
BETA = 0.1
TRAIN = TrainSettings(precision="fp32")
# A prompt ends with a special token, so that both libraries cut the text into the same tokens.
PROMPTS = [f"<user>Query: drill {'in red ' * n}<end><assistant>" for n in range(4)]
CHOSEN = [answer("The shopper wants a drill, and this is one." + " It is red." * n, "E") for n in range(4)]
REJECTED = [answer("A case." + " It holds a drill." * (3 - n), "C") for n in range(4)]
Found = tuple[float, torch.Tensor]


def policy(folder: Path) -> Any:
    """The model that learns, some way off its reference."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.02)
    return model


def gradients(loss: torch.Tensor, model: Any) -> Found:
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


def own(task: Any, model: Any, rows: list[dict[str, Any]]) -> Found:
    batch = task.collate(rows)
    total, _ = task.loss(model, batch)
    return gradients(total / batch["units"], model)


def theirs(trainer: Any) -> Found:
    logging.getLogger("trl").setLevel(logging.ERROR)
    batch = next(iter(trainer.get_train_dataloader()))
    return gradients(trainer.compute_loss(trainer.model, batch), trainer.model)


def arguments(folder: Path) -> dict[str, Any]:
    size = len(PROMPTS)
    plain: dict[str, Any] = {"bf16": False, "use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True}
    return plain | {"output_dir": str(folder), "per_device_train_batch_size": size, "report_to": "none"}


def assert_same(found: Found, expected: Found) -> None:
    assert found[0] == pytest.approx(expected[0], rel=RELATIVE)
    assert (found[1] - expected[1]).norm() <= RELATIVE * expected[1].norm()
    assert expected[1].norm() > 1e-3, "else equal gradients say nothing"


@pytest.mark.parametrize("shared", [False, True])
def test_sft_is_that_of_trl(llama_folder: Path, tmp_path: Path, shared: bool) -> None:
    """A mean over all answer tokens of the batch, whether or not answers share their prompt's beginning."""
    said = list(zip(PROMPTS, CHOSEN, strict=True))
    rows = [{"prompts": [prompt], "answers": [text]} for prompt, text in said]
    if shared:
        rows = [{"prompts": PROMPTS[n : n + 2], "answers": CHOSEN[n : n + 2]} for n in (0, 2)]
    task = SftTask(TRAIN, 1, str(tmp_path), str(llama_folder), Full(), 500, 1.0)
    data = datasets.Dataset.from_list([{"prompt": prompt, "completion": text} for prompt, text in said])
    trainer = trl.SFTTrainer(
        policy(llama_folder), trl.SFTConfig(**arguments(tmp_path)), train_dataset=data,
        processing_class=load_tokenizer(str(llama_folder)),
    )  # fmt: skip
    assert_same(own(task, policy(llama_folder), rows), theirs(trainer))


def preferences(folder: Path) -> list[dict[str, Any]]:
    """The rows with reference columns as stage 5 makes them."""
    columns: dict[str, Any] = {"preference_id": [f"{n}" for n in range(len(PROMPTS))]}
    columns |= {"chosen_prompt": PROMPTS, "rejected_prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED}
    batch = {name: np.asarray(values, dtype=object) for name, values in columns.items()}
    scored = ReferenceScorer(str(folder), 500, True, "fp32", 1)(batch)
    columns |= {f"{side}_reference_logprob": scored[f"{side}_logprob"].tolist() for side in ("chosen", "rejected")}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def dpo_of_trl(folder: Path, out: Path, kind: str, swapped: bool = False) -> Found:
    """With a live reference; `swapped` prefers the rejected answers."""
    sides = (REJECTED, CHOSEN) if swapped else (CHOSEN, REJECTED)
    said = zip(PROMPTS, *sides, strict=True)
    data = datasets.Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in said])
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    given = trl.DPOConfig(**arguments(out), beta=BETA, loss_type=[kind])
    tokenizer = load_tokenizer(str(folder))
    return theirs(trl.DPOTrainer(policy(folder), reference, given, train_dataset=data, processing_class=tokenizer))


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "sigmoid"),
        ({"share_prompts": False}, "sigmoid"),
        ({"length_normalised": True}, "sigmoid_norm"),
        ({"loss": "ipo", "length_normalised": True}, "ipo"),
    ],
)
def test_dpo_is_that_of_trl(llama_folder: Path, tmp_path: Path, settings: dict[str, Any], kind: str) -> None:
    """Reference log-probabilities as data against TRL's second model."""
    task = DpoTask(TRAIN, 1, str(tmp_path), str(llama_folder), Full(), 500, DpoSettings(beta=BETA, **settings))
    found = own(task, policy(llama_folder), preferences(llama_folder))
    assert_same(found, dpo_of_trl(llama_folder, tmp_path, kind))


def test_label_smoothing_mixes_trls_losses_of_both_preferences(llama_folder: Path, tmp_path: Path) -> None:
    """TRL has no cDPO of its own: 0.8 of the loss as stated and 0.2 of the preference the other way round."""
    settings = DpoSettings(beta=BETA, label_smoothing=0.2)
    task = DpoTask(TRAIN, 1, str(tmp_path), str(llama_folder), Full(), 500, settings)
    stated, flipped = (dpo_of_trl(llama_folder, tmp_path, "sigmoid", swapped) for swapped in (False, True))
    mixed = 0.8 * stated[0] + 0.2 * flipped[0], 0.8 * stated[1] + 0.2 * flipped[1]
    assert_same(own(task, policy(llama_folder), preferences(llama_folder)), mixed)
