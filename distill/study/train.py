"""Trains a student of a study in this process, then judges dev and, in a final run, test.

It does without Ray Train and DeepSpeed, with which stage 9 trains: they start a controller and workers for every
training, and a study has hundreds of short runs. A Ray task runs in a process that has imported everything already.
Model, batches, losses and figures are those of stage 9. Where bf16 is fast it is used through autocast.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import get_scheduler

from cluster.base.processor import resolve_precision
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import read_table
from cluster.training.deepspeed_config import accumulation_steps
from cluster.training.task import epoch_batches, padded_length, parameter_groups, step_seed
from distill.config import StudentStage
from distill.lrkd.stage import tasks
from distill.lrkd.task import INPUTS, LrkdTask
from distill.metrics import evaluate
from distill.student.model import Student, load_tokenizer
from distill.student.predict import predict
from distill.study.data import READS, hashed_id
from mpcot.temperature import fit_over_queries, scaled

CALIBRATED = ("accuracy", "macro_f1", "auc")


def study_task(stage: StudentStage, folder: Path) -> LrkdTask:
    """Return the training of stage 9 on a folder that looks like a run's; see `fold_folder`."""
    return tasks(stage, StageFolder(folder, "9-student", inputs=dict.fromkeys(READS, "study")))["lrkd"]


def train_student(task: LrkdTask) -> tuple[Student, int]:
    """Train as stage 9 does on one worker; return the student and the number of its training pairs.

    All rows are tokenised and joined with their targets once, because the data sets of a study fit into memory.
    """
    settings = task.settings
    taught = task.train_rows()
    rows, groups = task.collate(list(taught)), task.groups(taught)
    lengths = rows["attention_mask"].sum(1).tolist()
    student = task.build().to(_device()).train()
    steps = settings.steps_over(len(lengths))
    optimizer = torch.optim.AdamW(parameter_groups(task, student), weight_decay=settings.weight_decay, fused=True)
    name = {"constant": "constant_with_warmup"}.get(settings.schedule, settings.schedule)
    schedule = get_scheduler(name, optimizer, round(steps * settings.warmup_ratio), steps)
    batches = (b for epoch in count() for b in epoch_batches(lengths, settings, task.seed, epoch, groups))
    for step, batch in zip(range(steps), batches, strict=False):
        task.progress = step / steps
        torch.manual_seed(step_seed(task.seed, step))
        accumulate(task, student, rows, batch)
        torch.nn.utils.clip_grad_norm_(student.parameters(), settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return student, len(lengths)


def accumulate(task: LrkdTask, student: Student, rows: dict[str, Any], batch: list[int]) -> None:
    """Add up the gradients of the weighted mean loss over a global batch, one micro batch at a time."""
    weight = float(rows["weight"][batch].sum())
    for chosen in np.array_split(np.asarray(batch), accumulation_steps(task.settings)):
        with autocast(task):
            loss, _ = task.loss(student, select_rows(rows, chosen))
        torch.autograd.backward(loss / weight)


def autocast(task: LrkdTask) -> torch.autocast:
    """Return the context that multiplies matrices in the task's precision; the weights stay in fp32."""
    device = _device().type
    precision = resolve_precision(task.settings.precision, device == "cuda")
    return torch.autocast(device, torch.bfloat16, enabled=precision != "fp32")


def select_rows(batch: dict[str, Any], chosen: np.ndarray) -> dict[str, Any]:
    """Return the chosen rows of a collated batch, padded only as far as these rows need."""
    index = torch.from_numpy(chosen)
    rows = {name: value[index] for name, value in batch.items() if isinstance(value, Tensor)}
    width = padded_length(int(rows["attention_mask"].sum(1).max()))
    rows |= {name: rows[name][:, :width] for name in INPUTS if name in rows}
    return {name: value.to(_device()) for name, value in rows.items()} | {"units": float(rows["weight"].sum())}


def dev_figures(task: LrkdTask, student: Student) -> dict[str, float]:
    """Return stage 9's figures on dev, with the ratios of alignment to cross-entropy."""
    rows = task.collate(list(task.dev_rows()))
    order = np.argsort(rows["attention_mask"].sum(1).numpy(), kind="stable")
    records: list[dict[str, Any]] = []
    student.eval()
    with torch.no_grad(), autocast(task):
        for start in range(0, len(order), size := 2 * task.settings.micro_batch):
            records += task.predict(student, select_rows(rows, order[start : start + size]))
    return {name: round(value, 5) for name, value in task.summarise(records).items()}


def answers(task: LrkdTask, student: Student, *, test: bool) -> dict[str, Any]:
    """Return figures of calibrated probabilities on `dev`, where they are fitted, and with `test` those of test pairs.

    Returns: `dev`, `calibration` (`temperature`, and `bias` by label, 0 where none is fitted) and, with `test`,
        `probabilities`.
    """
    splits = ("dev", "test") if test else ("dev",)
    pairs = [row for row in read_table(task.rows.pairs).to_pylist() if row["split"] in splits]
    scheme = task.config.scheme
    raw = predict(student, load_tokenizer(task.student.model), pairs).probabilities.astype(float)
    on_dev = np.array([pair["split"] == "dev" for pair in pairs])
    dev = [pair for pair in pairs if pair["split"] == "dev"]
    numbers = [scheme.index(pair["label"]) for pair in dev]
    gold, queries = [pair["label"] for pair in dev], [pair["query_id"] for pair in dev]
    fit = fit_over_queries(numbers, raw[on_dev], queries)
    assert fit is not None, "a study has dev pairs"
    probabilities = scaled(raw, *fit)
    figures = evaluate(gold, probabilities[on_dev], queries, scheme)
    right = probabilities[on_dev][np.arange(len(dev)), numbers]
    said = {"log_loss": float(-np.log(right).mean())} | {n: figures[n] for n in CALIBRATED if figures[n] is not None}
    found: dict[str, Any] = {
        "dev": {name: round(value, 5) for name, value in said.items()},
        "calibration": {
            "temperature": round(fit[0], 4),
            "bias": {
                code: round(value, 4)
                for code, value in zip(scheme.codes, fit[1] or (0.0,) * len(scheme.codes), strict=True)
            },
        },
    }
    if test:
        tested = zip(pairs, probabilities.tolist(), on_dev, strict=True)
        found["probabilities"] = {hashed_id(pair["pair_id"]): own for pair, own, dev_too in tested if not dev_too}
    return found


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
