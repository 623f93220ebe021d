"""Losses of the teacher, as pure functions.

Shapes: B sequences, T tokens, A answers, N answer tokens of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from teacher.answer_tokens import IGNORED, attention

if TYPE_CHECKING:
    from torch import Tensor

LOGITS_MULTIPLE = 64


def answer_logprobs(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the log-probability of every answer token and the answer that it belongs to.

    Logits are computed for answer tokens only, because most of a batch is prompts, whose logits nobody needs. The
    number of tokens is rounded up: a CPU keeps the kernels that it prepares for each number, and with a new one for
    every batch the memory of a training grew by gigabytes.

    Args:
        model: a causal language model of transformers, or a DeepSpeed engine around one.
        batch: what `teacher.answer_tokens.pad` returns, each B x T.

    Returns:
        N log-probabilities in fp32, and N answer numbers.
    """
    # A token is predicted by the one before it, so the first one is not predicted.
    learnt = batch["labels"][:, 1:] != IGNORED
    places = functional.pad(learnt, (0, 1))
    count = int(places.sum())
    inner = getattr(model, "module", model)

    def pick(_: Any, states: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (functional.pad(states[0][places], (0, 0, 0, -count % LOGITS_MULTIPLE)),)

    hook = inner.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        out = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            **attention(batch["branches"], inner.dtype),
            use_cache=False,
        )
    finally:
        hook.remove()
    chosen = batch["labels"][:, 1:][learnt]
    logits = out.logits[:count].float()
    return -functional.cross_entropy(logits, chosen, reduction="none"), batch["owners"][:, 1:][learnt]


def sequence_logprobs(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return A sums of the answers' log-probabilities, and A token counts, by answer number."""
    logprobs, owners = answer_logprobs(model, batch)
    size = int(batch["owners"].max()) + 1
    sums = torch.zeros(size, dtype=logprobs.dtype, device=logprobs.device).index_add(0, owners, logprobs)
    return sums, torch.bincount(owners, minlength=size)


def verdict_weights(owners: Tensor, verdict_tokens: Tensor, weight: float) -> Tensor:
    """Return N weights: `weight` on the tokens of the verdict, 1 on all others.

    The verdict is at the end of an answer, before the end-of-text token.

    Args:
        owners: N answer numbers; the tokens of an answer are in their order.
        verdict_tokens: A lengths of the verdicts, by answer number.
    """
    counts = torch.bincount(owners, minlength=len(verdict_tokens))
    order = torch.argsort(owners, stable=True)
    ends = counts.cumsum(0)[owners[order]]
    from_end = torch.empty_like(owners)
    from_end[order] = ends - torch.arange(len(owners), device=owners.device)
    verdict = (from_end > 1) & (from_end <= 1 + verdict_tokens[owners])
    return torch.where(verdict, weight, 1.0)


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

    `sigmoid` is Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; with `label_smoothing` it is the conservative form of
    Mitchell 2023 (cDPO). `ipo` is Azar et al. 2023 (arXiv 2310.12036), eq. 17. The paper states it for the
    log-probabilities of whole answers; TRL takes means over tokens, on the advice of its authors.

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
