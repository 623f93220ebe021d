"""Stage 9: latent reasoning knowledge distillation (LRKD), and the same student trained on labels only.

Shapes: B batch, T tokens, P perspectives, L latent vectors, D width of one, C labels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder, read_manifest, versions
from cluster.base.tables import read_table, write_table
from cluster.models.folders import check_model
from cluster.training.driver import Row, Rows, TrainResult, TrainTask, drop_checkpoints, read_history, run_training
from cluster.training.task import PAD_MULTIPLE
from distill import losses
from distill.config import StudentConfig, StudentSettings, StudentStage
from distill.dev_figures import check_best_by_ndcg, constant_on_dev, ndcg_on_dev
from distill.metrics import label_metrics
from distill.predictions import CHECKED_PAIRS, PREDICTED_SPLITS, TRAINED_LOGITS, logits_table, predictions
from distill.ranking_losses import ranking_loss
from distill.student.inputs import encode_pairs, product_text
from distill.student.model import (
    Student,
    StudentOutput,
    build_student,
    encoder_layers,
    freeze_layers,
    is_trained,
    kept_for_inference,
    load_tokenizer,
    write_student,
)
from distill.teaching_rows import RowSettings, StudentRows, with_calibrated_labels
from mpcot.schemes.scheme import load_scheme

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
cached_tokenizer = cache(load_tokenizer)
PARTS = ("ce", "alignment", "soft", "margin", "ranking", "verdicts")


@dataclass
class LrkdTask(TrainTask):
    """Training with labels, with the teacher's labels, and with latent vectors that are aligned with its rationales."""

    student: StudentSettings
    config: StudentConfig
    rows: RowSettings
    class_weights: tuple[float, ...] | None = None
    constant: float = 0.0  # alignment loss on dev of the best constant vectors; InfoNCE's follows from each batch

    def train_rows(self) -> StudentRows:
        return StudentRows(self.rows, ("train", "unlabelled") if self.student.use_unlabelled else ("train",))

    def dev_rows(self) -> StudentRows:
        return StudentRows(self.rows, ("dev",))

    def length(self, row: Row) -> int:
        return len(row["query"]) + len(product_text(row, self.config.fields))

    def groups(self, rows: Rows) -> list[int] | None:
        return rows.groups if self.student.ranking != "none" and isinstance(rows, StudentRows) else None

    def is_head(self, name: str) -> bool:
        return not name.startswith("encoder.")

    def build(self) -> Student:
        torch.manual_seed(self.seed)
        student = build_student(self.student.model, self.config)
        freeze_layers(student.encoder, self.student.frozen_layers)
        return student

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        tokenizer = cached_tokenizer(self.student.model)
        tokens = encode_pairs(tokenizer, rows, self.config.max_tokens, self.config.fields, PAD_MULTIPLE)
        inputs: dict[str, Any] = {name: tokens[name] for name in INPUTS if name in tokens}
        return inputs | {
            "label": torch.tensor([row["label"] for row in rows]),
            "weight": torch.tensor([row["weight"] for row in rows], dtype=torch.float32),
            "gold": torch.tensor([row["gold"] for row in rows]),
            "judged": torch.tensor([row["judged"] for row in rows]),
            "soft": torch.tensor([row["soft"] for row in rows], dtype=torch.float32),
            "verdicts": torch.tensor([row["verdicts"] for row in rows]),
            "targets": torch.from_numpy(np.stack([row["targets"] for row in rows])),
            "target_mask": torch.from_numpy(np.stack([row["target_mask"] for row in rows])),
            "query": torch.tensor([row["group"] for row in rows]),
            "units": float(sum(row["weight"] for row in rows)),
        }

    def loss(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        output = model(**{name: batch[name] for name in INPUTS if name in batch})
        weight = losses.scheduled(self.student.alignment_weight, self.student.alignment_schedule, self.progress)
        if share := self.student.teacher_smoothing:
            labels = losses.smoothed_labels(batch["label"], batch["soft"], batch["judged"], share)
            batch = batch | {"smoothed": labels}
        parts = self.parts(output, batch, weight)
        figures = {name: float(part.detach().sum()) for name, part in parts.items()}
        return torch.stack([part.sum() for part in parts.values()]).sum(), figures

    def parts(self, output: StudentOutput, batch: dict[str, Any], alignment_weight: float) -> dict[str, Tensor]:
        """Return the weighted parts of the loss, each per example (B) and times the example's own weight."""
        own, latents = self.student, output.latents
        weights = None if self.class_weights is None else torch.tensor(self.class_weights, device=batch["label"].device)
        parts = {"ce": losses.label_loss(output.logits, batch.get("smoothed", batch["label"]), weights)}
        if latents is not None and own.alignment_weight:
            parts["alignment"] = alignment_weight * self.aligned(latents, batch)
        if own.soft_label_weight:
            divergence = losses.soft_label_loss(output.logits, batch["soft"], batch["judged"])
            parts["soft"] = own.soft_label_weight * divergence
        gains = torch.tensor(self.config.scheme.gains, device=output.logits.device)
        if own.margin_mse_weight:
            groups = batch["query"] if own.margin_pairs == "query" else None
            margins = losses.teacher_margin_loss(output.logits, batch["soft"], gains, batch["judged"], groups)
            parts["margin"] = own.margin_mse_weight * margins
        if own.ranking != "none":
            ranked = ranking_loss(own.ranking, output.logits, batch["label"], gains, batch["query"], batch["gold"])
            parts["ranking"] = own.ranking_weight * ranked
        if output.perspective_logits is not None and own.perspective_verdict_weight:
            verdicts = losses.verdict_loss(output.perspective_logits, batch["verdicts"])
            parts["verdicts"] = own.perspective_verdict_weight * verdicts
        return {name: part * batch["weight"] for name, part in parts.items()}

    def aligned(self, latents: Tensor, batch: dict[str, Any]) -> Tensor:
        """Return the alignment loss of latent vectors BxPxD per example (B), without any weight."""
        own = self.student
        return losses.alignment_loss(
            latents, batch["targets"], batch["target_mask"], own.alignment, reduction=own.reduction,
            normalise=own.normalise_targets, temperature=own.temperature,
        )  # fmt: skip

    def predict(self, model: nn.Module, batch: dict[str, Any]) -> list[Row]:
        student: Any = getattr(model, "module", model)  # the student inside DeepSpeed's engine
        states = student.encode(**{name: batch[name] for name in INPUTS if name in batch})
        # Gradients go no further than the encoder's output, so that only the heads are computed backwards.
        with torch.enable_grad():
            states = states.detach().requires_grad_()
            output = student.read(states, batch["attention_mask"])
            # Without lambda's schedule, so that losses on dev can be compared over the training.
            parts = self.parts(output, batch, self.student.alignment_weight)
            gradients = {
                name: losses.gradient_norms(parts[name], states) for name in ("ce", "alignment") if name in parts
            }
        columns = {name: part.tolist() for name, part in parts.items()}
        columns |= {f"{name}_gradient": norms.tolist() for name, norms in gradients.items()}
        if "alignment" in parts and self.student.alignment == "infonce":
            # With equal scores for all targets, as a constant vector has at best.
            columns["constant"] = self.aligned(torch.zeros_like(output.latents), batch).tolist()
        columns |= {"label": batch["label"].tolist(), "predicted": output.logits.argmax(-1).tolist()}
        columns |= {"query": batch["query"].tolist(), "probabilities": output.logits.float().softmax(-1).tolist()}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def summarise(self, records: list[Row]) -> dict[str, float]:
        columns = {name: [record[name] for record in records] for name in records[0]}
        parts = {name: float(np.mean(columns[name])) for name in PARTS if name in columns}
        gold, predicted = columns["label"], columns["predicted"]
        figures: dict[str, float | None] = {
            "loss": sum(parts.values()),
            **parts,
            **{name: value for name, value in label_metrics(gold, predicted).items() if value is not None},
        }
        if "alignment" in parts:
            figures["alignment_over_ce_loss"] = _ratio(columns["alignment"], columns["ce"])
            figures["alignment_over_ce_gradient"] = _ratio(columns["alignment_gradient"], columns["ce_gradient"])
            constant = float(np.mean(columns.get("constant", self.constant)))
            figures["alignment_skill"] = losses.alignment_skill(
                parts["alignment"] / self.student.alignment_weight, constant
            )
        figures["ndcg"] = ndcg_on_dev(gold, columns["probabilities"], columns["query"], self.config.scheme)
        return {name: value for name, value in figures.items() if value is not None}

    def save(self, state: dict[str, Tensor], folder: Path) -> None:
        write_table(folder.with_name(TRAINED_LOGITS), self.trained_logits(state))
        encoder_config = AutoConfig.from_pretrained(self.student.model, trust_remote_code=False)
        if self.student.frozen_layers:  # what was not trained is not in the state
            state = {name: part for name, part in self.build().named_parameters() if not part.requires_grad} | state
        kept, tokenizer = kept_for_inference(state, self.config), load_tokenizer(self.student.model)
        write_student(folder, kept, self.config.for_inference(), encoder_config, tokenizer)

    def trained_logits(self, state: dict[str, Tensor]) -> pa.Table:
        """Return the logits that the weights in memory give the first dev pairs, before anything is written or read."""
        student = self.build()
        unknown = student.load_state_dict(state, strict=False).unexpected_keys
        assert not unknown, f"the student has no place for {unknown[:3]}"
        return logits_table(student, cached_tokenizer(self.student.model), self.dev_rows()[:CHECKED_PAIRS])


def run(config: StudentStage, folder: StageFolder) -> None:
    """Train `lrkd` and, with `student.baseline`, `ce_only`; judge dev and test with each.

    A training that an interrupted run has finished is not repeated.

    Raises:
        UserError: no training or dev pairs, or settings that do not fit the perspectives or the encoder.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for kind, task in tasks(config, folder).items():
        out = folder.path / kind
        if not is_trained(out / "model", task.config.fingerprint):
            (out / "predictions.parquet").unlink(missing_ok=True)
            run_training(task, out, label=f"student {kind}")
        drop_checkpoints(task.settings, out)  # they are still there if the run was stopped after it had saved the model
        if not (out / "predictions.parquet").exists():
            write_table(out / "predictions.parquet", predictions(out / "model", task.rows))
        result = TrainResult(out / "model", read_history(out / "history.jsonl"))
        figures[kind] = {"dev_before": result.before, "dev_after": result.kept, **result.steps()}
        train = task.train_rows()
        predicted = Counter(read_table(out / "predictions.parquet", ["split"])["split"].to_pylist())
        if task.student.soft_labels == "calibrated":
            figures[kind]["soft_labels"] = {"temperature": task.rows.soft_temperature, "bias": [*task.rows.soft_bias]}
        if missing := train.without_donor:
            figures[kind]["pairs_without_donor"] = missing
        own = {"train": len(train), "unusable": train.unusable} | ({"surplus": train.surplus} if train.surplus else {})
        own |= {f"predicted_{split}": predicted[split] for split in PREDICTED_SPLITS}
        counts = own | counts  # those of LRKD, which comes first and may learn from more pairs
    folder.finish(counts, figures)


def tasks(config: StudentStage, folder: StageFolder) -> dict[str, LrkdTask]:
    """Return the trainings by the names of their subfolders.

    Raises:
        UserError: as for `run`.
    """
    kinds = {"lrkd": config.student}
    if config.student.baseline:
        kinds["ce_only"] = config.student.labels_only()
    return {kind: _task(config, student, folder) for kind, student in kinds.items()}


def _task(config: StudentStage, student: StudentSettings, folder: StageFolder) -> LrkdTask:
    scheme, names = load_scheme(config.labels.scheme), config.perspectives.names
    targets = ("vote", "mean", "concat", *names)
    if student.target not in targets:
        raise UserError(f"student.target: {student.target!r} is not one of {', '.join(targets)}")
    student = student.model_copy(update={"model": check_model("student.model", student.model)})
    if student.frozen_layers and student.frozen_layers > (layers := encoder_layers(student.model)):
        raise UserError(f"student.frozen_layers: {student.frozen_layers} is more than the encoder's {layers} layers")
    rows = _rows(config, student, folder)
    own = StudentConfig(
        scheme=scheme,
        perspectives=names,
        extractor=student.extractor,
        per_perspective=student.per_perspective,
        pooling=student.pooling,
        verdicts=student.perspective_verdict_weight > 0,
        aligned=student.alignment_weight > 0,
        auxiliary=student.auxiliary,
        target_width=rows.shape[1],
        max_tokens=student.max_tokens,
        fields=student.fields,
        dropout=student.dropout,
        versions=versions(),
        fingerprint=folder.fingerprint,
    )
    task = LrkdTask(student.train, config.seed, student, own, rows)
    train, dev = task.train_rows(), task.dev_rows()
    if not len(train) or not len(dev):
        raise UserError("student: there are no train or no dev pairs. Look at the counts of 1-pairs and at `split`.")
    check_best_by_ndcg(student, dev)
    task.constant = constant_on_dev(student, own, dev)
    if student.label_weights == "balanced":
        found = Counter(train.labels())
        task.class_weights = tuple(losses.balanced_weights([found[i] for i in range(len(scheme.labels))]))
    return task


def _rows(config: StudentStage, student: StudentSettings, folder: StageFolder) -> RowSettings:
    manifest = read_manifest(folder.input("8-targets"))
    assert manifest is not None, "8-targets is not finished"
    rows = RowSettings(
        pairs=(folder.input("1-pairs") / "pairs.parquet").resolve(),
        judgements=(folder.input("7-judgements") / "judgements.parquet").resolve(),
        targets=(folder.input("8-targets") / "targets.parquet").resolve(),
        scheme=load_scheme(config.labels.scheme),
        perspectives=config.perspectives.names,
        per_perspective=student.per_perspective,
        target=student.target,
        width=manifest["figures"]["width"],
        control=student.control,
        seed=config.seed,
        unlabelled_weight=student.unlabelled_weight,
        unlabelled_balance=student.unlabelled_balance,
    )
    return with_calibrated_labels(rows) if student.soft_labels == "calibrated" else rows


def _ratio(above: list[float], below: list[float]) -> float:
    return float(np.sum(above) / max(float(np.sum(below)), 1e-12))
