"""One training of stage 9: latent reasoning knowledge distillation (LRKD), or the same student on labels only.

Shapes: B batch, T tokens, P perspectives, L latent vectors, D width of one, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from cluster.base.tables import write_table
from cluster.training.driver import Row, Rows, TrainTask
from cluster.training.task import PAD_MULTIPLE
from distill.config import StudentConfig, StudentSettings
from distill.lrkd import losses
from distill.lrkd.dev_figures import ndcg_on_dev
from distill.lrkd.predictions import CHECKED_PAIRS, TRAINED_LOGITS, logits_table
from distill.lrkd.ranking_losses import ranking_loss
from distill.lrkd.teaching_rows import RowSettings, StudentRows
from distill.metrics import label_metrics
from distill.student.inputs import encode_pairs, product_text
from distill.student.model import (
    Student,
    StudentOutput,
    build_student,
    freeze_layers,
    kept_for_inference,
    load_tokenizer,
    read_encoder_config,
    write_student,
)

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
        if self.student.frozen_layers:  # what was not trained is not in the state
            state = {name: part for name, part in self.build().named_parameters() if not part.requires_grad} | state
        kept, tokenizer = kept_for_inference(state, self.config), load_tokenizer(self.student.model)
        write_student(folder, kept, self.config.for_inference(), read_encoder_config(self.student.model), tokenizer)

    def trained_logits(self, state: dict[str, Tensor]) -> pa.Table:
        """Return the logits that the weights in memory give the first dev pairs, before anything is written or read."""
        student = self.build()
        unknown = student.load_state_dict(state, strict=False).unexpected_keys
        assert not unknown, f"the student has no place for {unknown[:3]}"
        return logits_table(student, cached_tokenizer(self.student.model), self.dev_rows()[:CHECKED_PAIRS])


def _ratio(above: list[float], below: list[float]) -> float:
    return float(np.sum(above) / max(float(np.sum(below)), 1e-12))
