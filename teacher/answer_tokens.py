"""Prompts and answers as tokens, with the masks that keep prompts, padding and other answers out of the loss.

Answers whose prompts begin alike share one sequence: the common beginning is computed once, and every
answer is a branch behind it that sees the beginning and itself, at the positions that it would have alone.
Losses and gradients are those of the answers one by one.

Shapes: B sequences, T tokens, A answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.training.task import padded_length
from mpcot.asking.prompts import VERDICT

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
SHARED, PADDING = 0, -1  # branch numbers; an answer's branch is 1 or more
Example = tuple[list[int], list[int]]


def encode(tokenizer: Any, prompt: str, answer: str, max_tokens: int) -> Example:
    """Return token ids and labels of one example; labels are `IGNORED` on the prompt.

    The end-of-text token belongs to the answer, so that the model learns to stop. Where both do not fit,
    the prompt loses its start: the answer with its verdict is never cut.

    Raises:
        ValueError: the answer alone does not fit.
    """
    start = tokenizer.encode(prompt, add_special_tokens=False)
    said = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    if len(said) >= max_tokens:
        raise ValueError(f"an answer of {len(said)} tokens does not fit into max_tokens {max_tokens}")
    start = start[max(0, len(start) + len(said) - max_tokens) :]
    return start + said, [IGNORED] * len(start) + said


def verdict_tokens(tokenizer: Any, answer: str) -> int:
    """Return how many tokens the verdict takes at an answer's end; 0 where the answer has none."""
    before, mark, verdict = answer.rpartition(VERDICT)
    if not mark:
        return 0
    whole = tokenizer.encode(before + mark + verdict, add_special_tokens=False)
    return len(whole) - len(tokenizer.encode(before + mark, add_special_tokens=False))


@dataclass
class SharedSequence:
    """Answers behind the common beginning of their prompts, token by token.

    `branches` is `SHARED` on the beginning and counts the answers from 1; `owners` numbers them over the batch.
    """

    ids: list[int]
    labels: list[int]
    positions: list[int]
    branches: list[int]
    owners: list[int]


def share(examples: Sequence[Example], owners: Sequence[int]) -> SharedSequence:
    """Join answers into one sequence.

    Args:
        examples: token ids and labels of each answer, as `encode` returns them.
        owners: number of each answer within the batch.
    """
    common = _common(examples) if len(examples) > 1 else 0
    ids, labels = list(examples[0][0][:common]), [IGNORED] * common
    positions, branches, numbers = list(range(common)), [SHARED] * common, [-1] * common
    for branch, ((own, own_labels), owner) in enumerate(zip(examples, owners, strict=True), start=1):
        size = len(own) - common
        ids += own[common:]
        labels += own_labels[common:]
        positions += range(common, len(own))
        branches += [branch] * size
        numbers += [owner] * size
    return SharedSequence(ids, labels, positions, branches, numbers)


def _common(examples: Sequence[Example]) -> int:
    """Return how many tokens all prompts begin with; each keeps one of its own, which predicts its answer."""
    first = examples[0][0]
    most = min(labels.count(IGNORED) for _, labels in examples) - 1
    count = 0
    while count < most and all(ids[count] == first[count] for ids, _ in examples):
        count += 1
    return count


def pad(sequences: Sequence[SharedSequence], pad_id: int) -> dict[str, Any]:
    """Return `input_ids`, `labels`, `position_ids`, `branches` and `owners`, each B x T, padded on the right.

    T is `padded_length`: every new shape costs a kernel's preparation, on a CPU up to a second.
    """
    import torch

    shape = (len(sequences), padded_length(max(len(s.ids) for s in sequences)))
    fills = {"input_ids": pad_id, "labels": IGNORED, "position_ids": 0, "branches": PADDING, "owners": -1}
    batch = {name: torch.full(shape, value) for name, value in fills.items()}
    for row, s in enumerate(sequences):
        for name, values in zip(fills, (s.ids, s.labels, s.positions, s.branches, s.owners), strict=True):
            batch[name][row, : len(values)] = torch.tensor(values)
    return batch


def attention(branches: Tensor, dtype: Any) -> dict[str, Tensor]:
    """Return the mask that a model's forward pass needs.

    Sequences of one answer each need only their padding masked, which every attention kernel knows. Shared
    ones need B x 1 x T x T additive values: a token sees what is before it on the beginning and its own branch.
    """
    import torch

    if int(branches.max()) <= 1 and not bool((branches == SHARED).any()):
        return {"attention_mask": (branches != PADDING).long()}
    length = branches.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=branches.device).tril()
    same = branches[:, :, None] == branches[:, None, :]
    seen = before & (same | (branches[:, None, :] == SHARED))
    mask = torch.zeros(seen.shape, dtype=dtype, device=branches.device)
    return {"attention_mask": mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]}
