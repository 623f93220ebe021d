"""The arms of `training.py`, each in a process of its own: `training_arms.py --arm NAME --told FILE`.

Each arm reports when its steps ended, their losses, how long the reference model took, and its peak memory. All arms
learn from the same data: answers of the catalogue, which are written without a model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.base.processor import resolve_precision
from cluster.base.ray_session import ray_session
from cluster.base.stage_folder import write_json
from cluster.config import ClusterSettings, TrainSettings, Workers
from cluster.training.arrow_rows import write_rows
from cluster.training.driver import run_training
from cluster.training.task import epoch_batches
from mpcot.asking.prompts import answer, messages
from mpcot.asking.rendering import render
from mpcot.config import AnswerSettings, PerspectiveSettings
from mpcot.perspectives.perspective import load_perspectives
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.catalogue.make_pairs import Pair, make_pairs
from mpcot.sources.catalogue.write_rationales import PERSPECTIVES, rationale
from teacher.answer_tokens import encode
from teacher.config import DpoSettings, Full
from teacher.dpo import DpoTask
from teacher.fitting import Fitting
from teacher.model import attention_kernel, load_tokenizer
from teacher.preferences.reference_logprobs import SIDES, ReferenceScorer, preference_kernel
from teacher.sft import SftTask, sequence_lengths

MODEL = Path(__file__).parents[1] / "models" / "smollm2-135m-instruct"
THREADS, SEED, MAX_TOKENS = 2, 13, 384
ASK = AnswerSettings(guide="short", description_chars=0)
PAIRS = 28  # of three answers each for SFT, of one preference each for DPO
PER_STEP, PER_PASS = 4, 2  # pairs
WARM_UP_STEPS = 2
BASE = TrainSettings(
    epochs=1, learning_rate=1e-5, warmup_ratio=0, schedule="constant", global_batch=PER_STEP, micro_batch=PER_PASS,
    workers=Workers(cpus_per_worker=THREADS),
)  # fmt: skip
PRECISION = resolve_precision("auto", gpu=False)
Row = dict[str, Any]


def sft_rows() -> list[Row]:
    """Return one row per pair, as stage 3 writes them: its three prompts and answers."""
    questions = load_perspectives(PerspectiveSettings(names=PERSPECTIVES))
    return [
        {"prompts": [prompt(pair, q) for q in questions], "answers": [said(pair, pair, q.name) for q in questions]}
        for pair in catalogue()
    ]


def dpo_rows() -> list[Row]:
    """Return one preference per pair: its own answer over the answer of the next pair with another label."""
    pairs, rows = catalogue(), []
    for number, pair in enumerate(pairs):
        others = pairs[number + 1 :] + pairs[:number]
        other = next(p for p in others if p.judgement.label != pair.judgement.label)
        question = load_perspectives(PerspectiveSettings(names=PERSPECTIVES))[number % len(PERSPECTIVES)]
        row = {"preference_id": str(number)} | dict.fromkeys(
            ("chosen_prompt", "rejected_prompt"), prompt(pair, question)
        )
        rows.append(row | {"chosen": said(pair, pair, question.name), "rejected": said(pair, other, question.name)})
    return rows


def catalogue() -> list[Pair]:
    return make_pairs(PAIRS, 4, 0.5, SEED)


def prompt(pair: Pair, question: Any) -> str:
    shown = {"query": pair.query.text, "title": pair.product.title, "brand": pair.product.brand}
    return render(load_tokenizer(str(MODEL)), messages(shown, question, load_scheme("esci"), ASK))


def said(pair: Pair, other: Pair, perspective: str) -> str:
    return answer(rationale(other, perspective), other.judgement.label)


def examples(row: Row) -> list[tuple[str, str]]:
    """Return the prompts and answers of a row of either kind."""
    if "prompts" in row:
        return list(zip(row["prompts"], row["answers"], strict=True))
    return [(row[f"{side}_prompt"], row[side]) for side in SIDES]


def batches(task: SftTask | DpoTask, rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows step by step, as our training takes them."""
    lengths = [task.length(row) for row in rows]
    return [[rows[i] for i in batch] for batch in epoch_batches(lengths, task.settings, task.seed, 0)]


def tokens(rows: Sequence[Row]) -> int:
    """Return the number of tokens of all prompts and answers, as TRL trains on them."""
    tokenizer = load_tokenizer(str(MODEL))
    return sum(len(encode(tokenizer, *example, MAX_TOKENS)[0]) for row in rows for example in examples(row))


@dataclass
class Measured:
    """A task that saves the peak memory of its worker instead of a model."""

    def save(self, state: dict[str, Any], folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "peak").write_text(str(peak_bytes()))


@dataclass
class MeasuredSft(Measured, SftTask):
    """Our SFT, measured."""


@dataclass
class MeasuredDpo(Measured, DpoTask):
    """Our DPO, measured."""


def sft_task(folder: str) -> SftTask:
    lengths = sequence_lengths(Fitting(load_tokenizer(str(MODEL)), MAX_TOKENS), sft_rows())
    kernel = attention_kernel(lengths, gpu=False)
    return MeasuredSft(BASE, SEED, folder, str(MODEL), Full(), MAX_TOKENS, 1.0, attention=kernel)


def dpo_task(folder: str) -> DpoTask:
    return MeasuredDpo(BASE, SEED, folder, str(MODEL), Full(), MAX_TOKENS, DpoSettings(), attention=dpo_kernel())


def dpo_kernel() -> str | None:
    preferences, settings = pa.Table.from_pylist(dpo_rows()), DpoSettings(max_tokens=MAX_TOKENS)
    return preference_kernel(preferences, load_tokenizer(str(MODEL)), settings, gpu=False)


def our_sft(folder: str) -> Row:
    return ours(sft_task(folder), sft_rows(), 0.0)


def our_dpo(folder: str) -> Row:
    """Score the reference as stage 5 does, then train as stage 6 does."""
    rows = dpo_rows()
    scorer = ReferenceScorer(str(MODEL), MAX_TOKENS, True, BASE.precision, THREADS, attention=dpo_kernel())
    names = list(rows[0])
    started = time.perf_counter()
    for batch in batches(dpo_task(folder), rows):
        found = scorer({name: np.asarray([row[name] for row in batch], dtype=object) for name in names})
        for place, row in enumerate(batch):
            row |= {f"{side}_reference_logprob": float(found[f"{side}_logprob"][place]) for side in SIDES}
    prepared, scoring = time.perf_counter() - started, peak_bytes()
    trained = ours(dpo_task(folder), rows, prepared)
    return trained | {"peak_bytes": max(trained["peak_bytes"], scoring)}


def ours(task: SftTask | DpoTask, rows: Sequence[Row], prepared: float) -> Row:
    """Train through Ray Train and DeepSpeed, as the stages do."""
    folder = Path(task.folder)
    write_rows(folder / "train.arrow", pa.Table.from_pylist(list(rows)))
    write_rows(folder / "dev.arrow", pa.Table.from_pylist(list(rows)).slice(0, 0))
    with ray_session(ClusterSettings(num_cpus=THREADS, object_store_mb=128)):
        history = run_training(task, folder / "out", "training").history
    ends = [row["seconds"] for row in history]
    peak = int((folder / "out" / "model" / "peak").read_text())
    losses = [row["loss"] for row in history]
    return {"ends": ends, "losses": losses, "tokens": tokens(rows), "prepared": prepared, "peak_bytes": peak}


def trl_sft(folder: str) -> Row:
    from trl import SFTConfig, SFTTrainer

    order = [row for batch in batches(sft_task(folder), sft_rows()) for row in batch]
    data = [{"prompt": p, "completion": a} for row in order for p, a in examples(row)]
    return theirs(SFTTrainer, SFTConfig, data, folder, len(PERSPECTIVES))


def trl_dpo(folder: str, **given: Any) -> Row:
    from trl import DPOConfig, DPOTrainer

    order = [row for batch in batches(dpo_task(folder), dpo_rows()) for row in batch]
    data = [{"prompt": r["chosen_prompt"], "chosen": r["chosen"], "rejected": r["rejected"]} for r in order]
    return theirs(DPOTrainer, DPOConfig, data, folder, 1, **given)


def trl_dpo_precomputed(folder: str) -> Row:
    return trl_dpo(folder, precompute_ref_log_probs=True)


def theirs(trainer_class: Any, config_class: Any, data: list[Row], folder: str, answers: int, **given: Any) -> Row:
    """Train through TRL: bf16 as autocast over fp32 weights, no recomputation, and our batches."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback

    torch.set_num_threads(THREADS)
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    class Timed(trainer_class):  # type: ignore[misc]
        prepared = 0.0

        def _precompute_ref_logps(self, *arguments: Any) -> Any:
            started = time.perf_counter()
            scored = super()._precompute_ref_logps(*arguments)
            self.prepared = time.perf_counter() - started
            return scored

    settings = config_class(
        output_dir=folder, num_train_epochs=1, per_device_train_batch_size=PER_PASS * answers,
        gradient_accumulation_steps=PER_STEP // PER_PASS, train_sampling_strategy="sequential",
        learning_rate=BASE.learning_rate, lr_scheduler_type="constant", weight_decay=0.0,
        max_grad_norm=BASE.max_grad_norm, max_length=MAX_TOKENS, use_cpu=True, bf16=PRECISION != "fp32",
        gradient_checkpointing=False, dataloader_pin_memory=False, logging_steps=1, save_strategy="no",
        report_to="none", disable_tqdm=True, seed=SEED, **given,
    )  # fmt: skip
    trainer = Timed(
        str(MODEL), args=settings, train_dataset=Dataset.from_list(data),
        processing_class=load_tokenizer(str(MODEL)), callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    losses, count = [row["loss"] for row in logged], int(logged[-1]["num_tokens"])
    return {"ends": ends, "losses": losses, "tokens": count, "prepared": trainer.prepared, "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """Return the peak memory of this process, without that of its parent."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def matrix_limit(_: str) -> Row:
    """Measure how fast this machine computes the three matrix products of a training in the model's shapes."""
    import torch
    from transformers import AutoConfig

    torch.set_num_threads(THREADS)
    config = AutoConfig.from_pretrained(MODEL)
    width, inner = config.hidden_size, config.intermediate_size
    dtype = torch.bfloat16 if PRECISION != "fp32" else torch.float32
    work = seconds = 0.0
    for outputs, rows in ((width, 1024), (inner, 1024), (config.vocab_size, 256)):
        x, w, y = (torch.randn(*shape, dtype=dtype) for shape in ((rows, width), (width, outputs), (rows, outputs)))
        products = (lambda x=x, w=w: x @ w, lambda w=w, y=y: y @ w.T, lambda x=x, y=y: x.T @ y)
        for product in products:
            product()
            seconds += median(timeit.repeat(product, number=1, repeat=15))
            work += 2 * rows * width * outputs
    return {"flops_per_s": work / seconds}


ARMS: dict[str, Callable[..., Row]] = {
    "matrix_limit": matrix_limit,
    "our_sft": our_sft,
    "trl_sft": trl_sft,
    "our_dpo": our_dpo,
    "trl_dpo": trl_dpo,
    "trl_dpo_precomputed": trl_dpo_precomputed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", choices=tuple(ARMS), required=True)
    parser.add_argument("--told", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_json(given.told, ARMS[given.arm](folder))


if __name__ == "__main__":
    main()
