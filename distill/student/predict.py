"""A student's answers to many pairs, in this process.

Shapes: N pairs, P latent vectors, D target width, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from distill.config import StudentConfig
from distill.student.inputs import encode_pairs, product_text
from distill.student.model import Student
from mpcot.temperature import scaled


class Predictions(NamedTuple):
    """Label logits NxC, latent vectors NxPxD and verdict logits NxPxC. The last two are None if there are none."""

    logits: np.ndarray
    latents: np.ndarray | None
    perspective_logits: np.ndarray | None

    @property
    def probabilities(self) -> np.ndarray:
        return torch.from_numpy(self.logits).softmax(-1).numpy()

    def served(self, config: StudentConfig) -> np.ndarray:
        """Return the probabilities NxC that serving gives, at the student's temperature and with its biases."""
        return scaled(self.probabilities.astype(float), config.temperature, config.label_bias)


def predict(
    student: Student,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Mapping[str, Any]],
    batch_size: int = 64,
) -> Predictions:
    """Judge `pairs` in batches of similar length, on a GPU if there is one; return the answers in the order given."""
    assert pairs, "predict needs at least one pair"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = student.to(device).eval()
    fields, max_tokens = student.config.fields, student.config.max_tokens
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i]["query"]) + len(product_text(pairs[i], fields)))
    parts: list[list[Any]] = []
    for start in range(0, len(order), batch_size):
        chosen = [pairs[i] for i in order[start : start + batch_size]]
        batch = encode_pairs(tokenizer, chosen, max_tokens, fields).to(device)
        with torch.inference_mode():
            parts.append([None if t is None else t.float().cpu() for t in student(**batch)])
    back = np.argsort(order)
    whole = [None if c[0] is None else torch.cat(c).numpy()[back] for c in zip(*parts, strict=True)]
    return Predictions(*whole)  # type: ignore[arg-type]  # logits are never None
