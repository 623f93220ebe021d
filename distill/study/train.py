"""One run of a study: train a student on a fold in this process, then judge dev and, in a final run, test.

It does without Ray Train and DeepSpeed, with which stage 9 trains: they start a controller and workers for every
training, and a study has hundreds of short runs. A Ray task runs in a process that has imported everything already.
Model, batches, losses and figures are those of stage 9. Where bf16 is fast it is used through autocast.
"""

from __future__ import annotations

import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import get_scheduler

from cluster.base.devices import use_gpus
from cluster.base.processor import resolve_precision
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import read_table
from cluster.config import Settings
from cluster.training.deepspeed_config import accumulation_steps
from cluster.training.task import epoch_batches, padded_length, parameter_groups, step_seed
from distill.config import StudentSettings, StudentStage
from distill.lrkd import INPUTS, LrkdTask, tasks
from distill.metrics import evaluate
from distill.student.model import Student, load_tokenizer
from distill.student.predict import predict
from distill.study.data import READS, fold_folder, hashed_id
from mpcot.config import PerspectiveSettings
from mpcot.sources.config import LabelSettings

TEST_FIGURES = ("accuracy", "macro_f1", "auc", "ndcg_at_10", "calibration_error")


class Job(Settings):
    """Everything that a run needs, as plain data that can be sent to a worker."""

    run: Path
    labels: LabelSettings
    perspectives: PerspectiveSettings
    student: StudentSettings
    seed: int
    fold: int
    folds: int
    folds_seed: int
    hidden_labels: float = 0
    test: bool
    threads: int
    gpus: float = 0


def run_one(job: Job) -> dict[str, Any]:
    """Train a student, judge it and return what is kept of the run.

    Returns: `dev` figures as stage 9 logs them, `train_pairs`, `seconds` and, with `job.test`, `test` figures and
        `predicted` labels by hashed pair id.
    """
    started = time.monotonic()
    use_gpus(job.gpus)
    if not torch.cuda.is_available():
        torch.set_num_threads(job.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = fold_folder(job.run, job.fold, job.folds, job.folds_seed, Path(scratch), job.hidden_labels)
        student = job.student.model_copy(update={"baseline": False})
        stage = StudentStage(seed=job.seed, labels=job.labels, perspectives=job.perspectives, student=student)
        task = tasks(stage, StageFolder(folder, "9-student", inputs=dict.fromkeys(READS, "study")))["lrkd"]
        trained, taught = train_student(task)
        found: dict[str, Any] = {"dev": dev_figures(task, trained), "train_pairs": taught}
        if job.test:
            found |= test_answers(task, trained)
    return found | {"seconds": round(time.monotonic() - started, 1)}


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


def test_answers(task: LrkdTask, student: Student) -> dict[str, Any]:
    """Return the `test` figures, and the `predicted` labels by hashed pair id."""
    pairs = [row for row in read_table(task.rows.pairs).to_pylist() if row["split"] == "test"]
    codes = task.config.scheme.codes
    found = predict(student, load_tokenizer(task.student.model), pairs)
    gold, queries = [pair["label"] for pair in pairs], [pair["query_id"] for pair in pairs]
    figures = evaluate(gold, found.probabilities, queries, task.config.scheme)
    test = {name: None if figures[name] is None else round(figures[name], 5) for name in TEST_FIGURES}
    labels = (codes[i] for i in found.logits.argmax(-1))
    return {"test": test, "predicted": {hashed_id(p["pair_id"]): c for p, c in zip(pairs, labels, strict=True)}}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
