"""Losses of the teacher, as pure functions.

Shapes: B batch, T tokens, N answer tokens of the batch, H width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from teacher.tokens import IGNORED

if TYPE_CHECKING:
    from torch import Tensor


def answer_logprobs(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the log-probability of every answer token and the row that it belongs to.

    The vocabulary's logits are computed for answer tokens only: prompts are most of a batch, and their
    logits would be thrown away.

    Args:
        model: a causal language model of transformers, or a DeepSpeed engine around one.
        batch: `input_ids`, `labels`, `attention_mask`, each B x T.

    Returns:
        N log-probabilities in fp32, and N row numbers.
    """
    labels = batch["labels"][:, 1:]
    mask = labels != IGNORED
    rows, places = mask.nonzero(as_tuple=True)
    keep = torch.arange(int(places.min()), batch["input_ids"].shape[1] - 1, device=labels.device)
    out = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        use_cache=False,
        logits_to_keep=keep,
    )
    logits = out.logits[rows, places - keep[0]].float()
    chosen = labels[rows, places]
    return -functional.cross_entropy(logits, chosen, reduction="none"), rows


def sequence_logprobs(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return B sums of the answers' log-probabilities, and B token counts."""
    logprobs, rows = answer_logprobs(model, batch)
    size = batch["input_ids"].shape[0]
    sums = torch.zeros(size, dtype=logprobs.dtype, device=logprobs.device).index_add(0, rows, logprobs)
    counts = torch.bincount(rows, minlength=size)
    return sums, counts


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    chosen_reference: Tensor,
    rejected_reference: Tensor,
    beta: float,
    kind: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return B losses and B margins (chosen minus rejected reward, both times beta).

    `sigmoid` is Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; with `label_smoothing` the conservative
    form of Mitchell 2023 (cDPO). `ipo` is Azar et al. 2023 (arXiv 2310.12036), eq. 17, whose
    log-probabilities should be means over tokens.

    Args:
        chosen, rejected: B log-probabilities of the answers under the model that learns.
        chosen_reference, rejected_reference: the same under the frozen reference.
    """
    gap = (chosen - chosen_reference) - (rejected - rejected_reference)
    if kind == "ipo":
        return (gap - 1 / (2 * beta)) ** 2, beta * gap
    right = -functional.logsigmoid(beta * gap)
    flipped = -functional.logsigmoid(-beta * gap)
    return right * (1 - label_smoothing) + flipped * label_smoothing, beta * gap
