"""Writes a student as a plain model for sequence classification, which transformers and many servers load.

Such a model reads [CLS] alone, through one layer with tanh: W2 tanh(W1 h + b1) + b2. A student whose classifier reads
[CLS] alone fits exactly: with W1 = eI and a small e, tanh(eh) is eh but for (eh)^3 / 3, and W2 = W / e takes e back.
Of any other student the answers are distilled: encoder and head learn them on the pairs of the run.

Shapes: B pairs, H width, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from cluster.base.errors import UserError
from cluster.base.progress import progress
from distill.config import StudentConfig
from distill.formats.onnx_graph import answers
from distill.formats.pairs import FIXED, Rows
from distill.student.inputs import encode_pairs
from distill.student.model import MAKING, Student, load_tokenizer

Head = Literal["labels", "score"]
# Where the head of an architecture has its two layers.
LAYERS = {
    "bert": ("bert.pooler.dense", "classifier"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", "classifier.out_proj"),
    "camembert": ("classifier.dense", "classifier.out_proj"),
}
E_EXACT = 1e-3  # small enough for tanh, and large enough for the fp16 of servers
E_TAUGHT = 0.3  # where the head goes on learning, tanh should not be flat
TOLERANCE = 1e-4
SCORE_LABEL = "RELEVANCE"
LEAST = 1e-4  # scores are kept this far from 0 and 1 before their logit is taken


@dataclass(frozen=True)
class Teaching:
    """How the answers of a student are distilled: passes over the pairs, pairs per step, learning rate."""

    epochs: int = 3
    batch: int = 32
    learning_rate: float = 5e-5
    seed: int = 0


class Classifier:
    """A plain model that is to answer like the student of an export.

    Args:
        head: `labels` has one logit per label, `score` one logit whose sigmoid is the score.

    Raises:
        UserError: the encoder has another architecture than those in `LAYERS`.
    """

    def __init__(self, export_dir: Path, head: Head) -> None:
        self.student, self.tokenizer, self.head = Student.load(export_dir), load_tokenizer(export_dir), head
        self.config: StudentConfig = self.student.config
        kind = self.student.encoder.config.model_type
        if kind not in LAYERS:
            raise UserError(f"{export_dir}: its encoder is a {kind}; sequence classification takes {', '.join(LAYERS)}")
        self.model = self._plain(export_dir)
        self.first, self.last = (cast(nn.Linear, self.model.get_submodule(name)) for name in LAYERS[kind])

    @property
    def exact(self) -> bool:
        """Whether the student fits into such a model as it is."""
        reads_cls = self.student.norm is None and self.config.pooling == "cls"
        return reads_cls and (self.head == "labels" or len(self.config.scheme.labels) == 2)

    def _plain(self, export_dir: Path) -> PreTrainedModel:
        config = AutoConfig.from_pretrained(export_dir, trust_remote_code=False)
        names = [SCORE_LABEL] if self.head == "score" else list(self.config.scheme.codes)
        config.id2label, config.label2id = dict(enumerate(names)), {name: n for n, name in enumerate(names)}
        config.problem_type = None
        with MAKING:
            model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
        model.base_model.load_state_dict(self.student.encoder.state_dict(), strict=False)  # all but the head
        return model.eval()

    def fold(self, e: float) -> None:
        """Put what the classifier reads of [CLS] into the head, with temperature and biases."""
        width = self.student.encoder.config.hidden_size
        weight = self.student.classifier.weight[:, :width].detach() / self.config.temperature
        bias = self.student.classifier.bias.detach() / self.config.temperature
        bias = bias + torch.tensor(self.config.label_bias or [0.0] * len(bias))
        if self.head == "score":  # of two labels, the logit of the better one
            best, worst = int(np.argmax(self.config.scheme.gains)), int(np.argmin(self.config.scheme.gains))
            weight, bias = (weight[best] - weight[worst])[None], (bias[best] - bias[worst])[None]
        with torch.no_grad():
            self.first.weight.copy_(e * torch.eye(width))
            self.first.bias.zero_()
            self.last.weight.copy_(weight / e)
            self.last.bias.copy_(bias)

    def teach(self, pairs: Rows, teaching: Teaching) -> None:
        """Distil the student's answers to these pairs, which need no labels."""
        self.fold(E_TAUGHT)
        wanted = answers(self.student, self.tokenizer, pairs)
        targets = torch.from_numpy(wanted["score" if self.head == "score" else "probabilities"])
        torch.manual_seed(teaching.seed)
        steps = teaching.epochs * math.ceil(len(pairs) / teaching.batch)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=teaching.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1, (step + 1) / 10) * (1 - step / steps)
        )
        self.model.train()
        with progress("distilling", unit="pair", total=teaching.epochs * len(pairs)) as bar:
            for epoch in range(teaching.epochs):
                for chosen in torch.split(torch.randperm(len(pairs)), teaching.batch):
                    loss = self._loss(self._logits([pairs[n] for n in chosen.tolist()]), targets[chosen])
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
                    bar.update(bar.done + len(chosen), epoch=epoch + 1, loss=loss.item())
        self.model.eval()

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with the student's probabilities BxC, or with its scores B, less what it is at best."""
        if self.head == "score":
            scores = targets.clamp(LEAST, 1 - LEAST)
            best = functional.binary_cross_entropy(scores, scores)
            return functional.binary_cross_entropy_with_logits(logits[:, 0], scores) - best
        return functional.kl_div(logits.log_softmax(-1), targets, reduction="batchmean")

    def _logits(self, pairs: Sequence[Mapping[str, Any]]) -> Tensor:
        return self.model(**encode_pairs(self.tokenizer, pairs, self.config.max_tokens, self.config.fields)).logits

    def answer(self, pairs: Rows, batch: int = 32) -> dict[str, np.ndarray]:
        """Return `score` B and, with a head of labels, `probabilities` BxC."""
        with torch.inference_mode():
            logits = torch.cat([self._logits(pairs[n : n + batch]) for n in range(0, len(pairs), batch)])
        if self.head == "score":
            return {"score": logits[:, 0].sigmoid().numpy()}
        probabilities = logits.softmax(-1).numpy()
        return {"score": probabilities @ np.array(self.config.scheme.unit_gains), "probabilities": probabilities}

    def make(self, pairs: Rows, teaching: Teaching) -> None:
        """Fold the student into the model or, where that is not possible, distil it.

        Raises:
            UserError: the folded model does not answer like the student, or there are no pairs to distil with.
        """
        if not self.exact:
            if not pairs:
                raise UserError(
                    "this student reads more than [CLS], so its answers have to be distilled, and there are no pairs "
                    "for that. Name the run folder that has them with --run."
                )
            self.teach(pairs, teaching)
            return
        self.fold(E_EXACT)
        found, wanted = self.answer(FIXED), answers(self.student, self.tokenizer, FIXED)
        if not (difference := float(np.abs(found["score"] - wanted["score"]).max())) <= TOLERANCE:
            raise UserError(
                f"the folded model's scores differ from the student's by {difference:.1e}. Please report this."
            )

    def save(self, target: Path) -> PreTrainedTokenizerBase:
        """Write the model and its tokenizer, which cuts at the tokens that the student reads."""
        self.model.save_pretrained(target)
        self.tokenizer.model_max_length = self.config.max_tokens
        self.tokenizer.save_pretrained(target)
        return self.tokenizer
