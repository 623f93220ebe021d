"""Trainings of a tiny teacher through Ray Train and DeepSpeed: they learn, agree, resume and end in a plain folder."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.base.errors import UserError
from cluster.config import TrainSettings, Workers
from cluster.training.arrow_rows import write_rows
from cluster.training.driver import TrainResult, run_training
from mpcot.records import PREFERENCE
from teacher.config import DpoSettings, Lora
from teacher.dpo import DpoTask
from teacher.preferences.reference_logprobs import ReferenceScorer, fill_logprobs
from teacher.sft import SftTask, to_sequences
from tests.helpers.local_s3 import s3_folder, stored
from tests.helpers.one_worker import training_here
from tests.helpers.training_tasks import AlwaysFails, Killed, examples, lora_with_dropout, settings, sft_task
from tests.helpers.two_workers import train_by_two

pytestmark = pytest.mark.usefixtures("local_ray", "group")

IDS = torch.arange(5, 69).reshape(2, 32)
STEPS = 12
ROOT = Path(__file__).parents[2]


@pytest.fixture
def dev_task(tmp_path: Path, llama_folder: Path) -> SftTask:
    return sft_task(tmp_path, llama_folder, settings())


@pytest.fixture(scope="module")
def plain(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """One worker, no ZeRO."""
    folder = tmp_path_factory.mktemp("plain")
    return run_training(sft_task(folder, llama_folder, settings()), folder / "out", "sft")


def in_bf16(zero: int, workers: int) -> TrainSettings:
    return settings(zero, workers, precision="bf16", epochs=2)


def as_in_gpu_toml(**changes: Any) -> TrainSettings:
    """What the shipped config for GPU clusters asks of a large teacher's training, on two workers."""
    sft = tomllib.loads((ROOT / "workflows/configs/gpu.toml").read_text(encoding="utf-8"))["sft"]
    asked = {name: sft["train"][name] for name in ("precision", "zero_stage", "gradient_checkpointing")}
    assert asked == {"precision": "bf16", "zero_stage": 3, "gradient_checkpointing": True}
    assert sft["tuning"]["kind"] == "lora"
    return settings(3, 2).model_copy(update=asked | changes)


@pytest.fixture(scope="module")
def by_two(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainResult]:
    """All the trainings by two workers that are not disturbed."""
    own: dict[str, tuple[TrainSettings, Lora | None]] = {f"zero-{zero}": (settings(zero, 2), None) for zero in range(4)}
    own["bf16"] = in_bf16(3, 2), Lora(rank=4, alpha=8)
    own["dropout"] = settings(1, 2), lora_with_dropout()
    own["gpu.toml"] = as_in_gpu_toml(), Lora(rank=4, alpha=8)
    folder, tasks = tmp_path_factory.mktemp("by-two"), {}
    for name, (train, tuning) in own.items():
        (rows := folder / "rows" / name).mkdir(parents=True)
        tasks[name] = sft_task(rows, llama_folder, train, tuning)
    return train_by_two(tasks, folder)


def curve(result: TrainResult, split: str) -> list[float]:
    return [row["loss"] for row in result.history if row["split"] == split]


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=IDS).logits


def loss_of_folder(task: SftTask, folder: Path) -> float:
    """The held-out loss of a saved folder, by plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = task.dev_rows()
    with torch.no_grad():
        return task.summarise(task.predict(model, task.collate([rows[i] for i in range(len(rows))])))["loss"]


def test_the_held_out_loss_falls(plain: TrainResult) -> None:
    dev = [row for row in plain.history if row["split"] == "dev"]
    assert [row["step"] for row in dev] == [0, 4, 8, 12]
    assert curve(plain, "dev") == sorted(curve(plain, "dev"), reverse=True)
    assert dev[-1]["loss"] < 0.8 * dev[0]["loss"]
    train = [row for row in plain.history if row["split"] == "train"]
    assert [row["step"] for row in train] == list(range(1, STEPS + 1))
    assert train[-1]["epoch"] == 3.0 and train[0]["units"] > 0


def test_only_what_a_reader_needs_is_left(plain: TrainResult) -> None:
    out = plain.model.parent
    assert sorted(p.name for p in out.iterdir()) == ["history.jsonl", "model", "tensorboard"]
    assert list((out / "tensorboard").glob("events*"))


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_workers_and_zero_stages_do_not_change_what_is_learnt(
    plain: TrainResult, by_two: dict[str, TrainResult], dev_task: SftTask, zero: int
) -> None:
    """Equal global batches of answers of unlike length: every loss agrees, and so does the saved folder."""
    result = by_two[f"zero-{zero}"]
    for split in ("train", "dev"):
        np.testing.assert_allclose(curve(result, split), curve(plain, split), rtol=2e-4)
    assert torch.allclose(logits(result.model), logits(plain.model), atol=2e-3)
    assert loss_of_folder(dev_task, result.model) == pytest.approx(result.kept["loss"], rel=1e-5)


def test_adapters_in_bf16_learn_the_same_in_shares_of_the_model_as_in_one_piece(
    by_two: dict[str, TrainResult], llama_folder: Path, tmp_path: Path
) -> None:
    """As a large teacher is trained: ZeRO-3 with LoRA in bf16, against one worker that holds everything."""
    alone = training_here(sft_task(tmp_path, llama_folder, in_bf16(0, 1), Lora(rank=4, alpha=8)), tmp_path / "out")
    for result in (alone, by_two["bf16"]):
        assert logits(result.model).isfinite().all()
    curves = [curve(result, "train") for result in (alone, by_two["bf16"])]
    np.testing.assert_allclose(*curves, rtol=1e-2)
    assert curves[0][-1] < 0.98 * curves[0][0]


@pytest.fixture(scope="module")
def undisturbed(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """With dropout, whose draws a resumed training must repeat; in this process, where nothing is ever restarted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return training_here(sft_task(folder, llama_folder, settings(), lora_with_dropout()), folder / "out")


def test_a_killed_worker_loses_nothing(undisturbed: TrainResult, llama_folder: Path, tmp_path: Path) -> None:
    """Killed in step 8 of 12 and restarted by Ray, killed again and restarted by hand: the same to the last bit."""
    own = settings().model_copy(update={"workers": Workers(max_failures=1)})
    task = Killed(**vars(sft_task(tmp_path, llama_folder, own, lora_with_dropout())), at=(15, 20))
    with pytest.raises(UserError, match="sft: the training failed"):
        run_training(task, tmp_path / "out", "sft")
    result = run_training(task, tmp_path / "out", "sft")
    passes = list(Counter((tmp_path / "passes").read_text().splitlines()).values())
    assert passes == [15, 5, 12], "two forward passes per step; the second and third worker begin after step 6"
    assert torch.equal(logits(result.model), logits(undisturbed.model))
    assert curve(result, "train") == curve(undisturbed, "train") and curve(result, "dev") == curve(undisturbed, "dev")
    assert not torch.equal(logits(result.model), logits(llama_folder))


def test_one_killed_worker_of_two_takes_nothing_along(
    by_two: dict[str, TrainResult], llama_folder: Path, tmp_path: Path
) -> None:
    """The second of two is killed in step 8 of 12, in mid-epoch; both begin anew after step 6, on the same rows."""
    own = settings(zero=1).model_copy(update={"workers": Workers(count=2, max_failures=1)})
    task = Killed(**vars(sft_task(tmp_path, llama_folder, own, lora_with_dropout())), at=(8,), rank=1)
    rough, calm = run_training(task, tmp_path / "out", "sft"), by_two["dropout"]
    passes = Counter((tmp_path / "passes").read_text().splitlines())
    assert list(passes.values()) == [8, 6], "one forward pass per step on each worker"
    assert curve(rough, "train") == curve(calm, "train") and curve(rough, "dev") == curve(calm, "dev")
    assert torch.equal(logits(rough.model), logits(calm.model))


def test_a_training_as_on_gpus_is_killed_resumed_and_exported(
    by_two: dict[str, TrainResult], llama_folder: Path, tmp_path: Path
) -> None:
    """LoRA, ZeRO-3 and recomputed activations in bf16: one of two is killed in step 8 of 12, as above.

    Its checkpoints lie on S3 storage, a server of the test's own: both can only have gone on from there.
    """
    staging = tmp_path / "fast-disk"
    with s3_folder() as storage:
        own = as_in_gpu_toml(staging=str(staging), checkpoints=storage, workers=Workers(count=2, max_failures=1))
        task = Killed(**vars(sft_task(tmp_path, llama_folder, own, Lora(rank=4, alpha=8))), at=(8,), rank=1)
        rough, calm = run_training(task, tmp_path / "out", "sft"), by_two["gpu.toml"]
        assert not stored(storage), "a finished training leaves none"
    assert not list((tmp_path / "out").rglob("*.pt")), "nothing of them lies beside the results"
    assert list(Counter((tmp_path / "passes").read_text().splitlines()).values()) == [8, 6]
    assert curve(rough, "train") == curve(calm, "train") and curve(rough, "dev") == curve(calm, "dev")
    assert curve(rough, "dev")[-1] < 0.98 * curve(rough, "dev")[0], "adapters learn through recomputed layers"
    assert torch.equal(logits(rough.model), logits(calm.model)), "the saved folder is plain, with adapters merged"
    assert not torch.equal(logits(rough.model), logits(llama_folder))
    (used,) = staging.iterdir()
    assert list(used.iterdir()) == [], "checkpoints were staged there, and nothing is left of them"


def test_a_training_that_cannot_succeed_says_what_its_worker_said(llama_folder: Path, tmp_path: Path) -> None:
    quick = settings(workers=1).model_copy(update={"workers": Workers(max_failures=0)})
    task = AlwaysFails(**vars(sft_task(tmp_path, llama_folder, quick)))
    with pytest.raises(UserError, match=r"sft: the training failed: .*cannot be learnt"):
        run_training(task, tmp_path / "out", "sft")
    assert not (tmp_path / "out" / "model").exists()


def test_no_rows_no_training(llama_folder: Path, tmp_path: Path) -> None:
    task = sft_task(tmp_path, llama_folder, settings())
    write_rows(tmp_path / "train.arrow", to_sequences(examples(0), 1))
    with pytest.raises(UserError, match="there are no training rows"):
        run_training(task, tmp_path / "out", "sft")


def preferences(count: int, model: Path) -> pa.Table:
    """Of two answers alike but for the verdict, E is chosen over I; with the model's own log-probabilities."""
    rows = []
    for n, example in enumerate(examples(count).to_pylist()):
        words = example["answer"].rpartition(" ")[0]
        row = dict.fromkeys(PREFERENCE.names[:5], "x") | {"preference_id": f"{n}"}
        row |= {f"{side}_prompt": example["prompt"] for side in ("chosen", "rejected")}
        rows.append(row | {"chosen": f"{words} E", "rejected": f"{words} I"})
    table = pa.Table.from_pylist(rows, PREFERENCE)
    batch = {name: np.asarray(table[name].to_pylist(), dtype=object) for name in PREFERENCE.names[:9]}
    found = ReferenceScorer(str(model), 128, True, "fp32", 1)(batch)
    sides = zip(found["chosen_logprob"].tolist(), found["rejected_logprob"].tolist(), strict=True)
    return fill_logprobs(table, dict(zip(found["preference_id"], sides, strict=True)))


def test_dpo_widens_the_margin(llama_folder: Path, tmp_path: Path) -> None:
    table = preferences(28, llama_folder)
    write_rows(tmp_path / "train.arrow", table)
    write_rows(tmp_path / "dev.arrow", table.slice(0, 8))
    own = TrainSettings(**settings().model_dump() | {"epochs": 4, "zero_stage": 1, "learning_rate": 3e-2})
    task = DpoTask(own, 1, str(tmp_path), str(llama_folder), Lora(rank=8), 128, DpoSettings(beta=0.5))
    result = training_here(task, tmp_path / "out")
    before, after = result.before, result.kept
    assert before["margin"] == pytest.approx(0, abs=1e-4) and before["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert after["margin"] > 0.1 and after["loss"] < before["loss"] and after["accuracy"] > 0.6
    model: Any = AutoModelForCausalLM.from_pretrained(result.model).eval()
    rows = task.dev_rows()
    with torch.no_grad():
        again = task.summarise(task.predict(model, task.collate([rows[i] for i in range(len(rows))])))
    assert again["margin"] == pytest.approx(after["margin"], rel=1e-3)
