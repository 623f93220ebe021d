"""Prompts and answers as tokens, with the masks that keep prompts, padding and other answers out of the loss.

Answers whose prompts begin alike share one sequence. The common beginning is computed once, and every answer is a
branch behind it, which sees only the beginning and itself, at the positions that it would have on its own. Losses and
gradients are the same as for the answers one by one.

Shapes: B sequences, T tokens, A answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cluster.training.task import padded_length
from mpcot.asking.prompts import VERDICT

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
SHARED, PADDING = 0, -1  # branch numbers; an answer's branch is 1 or more
# The columns of a batch with the values that pad them; `input_ids` are padded with the padding token.
FILLS = {"input_ids": 0, "labels": IGNORED, "position_ids": 0, "branches": PADDING, "owners": -1}
Example = tuple[list[int], list[int]]
Joined = dict[str, list[int]]


def encode(tokenizer: Any, prompt: str, answer: str, max_tokens: int) -> Example:
    """Return token ids and labels of one example; labels are `IGNORED` on the prompt.

    The end-of-text token belongs to the answer, so that the model learns to stop. That both fit together is seen to
    before a training (`teacher.fitting`).
    """
    start = tokenizer.encode(prompt, add_special_tokens=False)
    said = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    assert len(start) + len(said) <= max_tokens, f"{len(start)} + {len(said)} tokens, and max_tokens is {max_tokens}"
    return start + said, [IGNORED] * len(start) + said


def verdict_tokens(tokenizer: Any, answer: str) -> int:
    """Return how many tokens the verdict at the end of an answer has; 0 if there is no verdict."""
    before, mark, verdict = answer.rpartition(VERDICT)
    if not mark:
        return 0
    whole = tokenizer.encode(before + mark + verdict, add_special_tokens=False)
    return len(whole) - len(tokenizer.encode(before + mark, add_special_tokens=False))


def share(examples: Sequence[Example], owners: Sequence[int]) -> Joined:
    """Join answers behind the common beginning of their prompts into one sequence.

    Args:
        examples: token ids and labels of each answer, as `encode` returns them.
        owners: number of each answer within the batch.

    Returns: the columns of `FILLS` by token. `branches` is `SHARED` on the beginning and counts the answers from 1.
    """
    common = _common(examples) if len(examples) > 1 else 0
    joined = {
        "input_ids": list(examples[0][0][:common]),
        "labels": [IGNORED] * common,
        "position_ids": list(range(common)),
        "branches": [SHARED] * common,
        "owners": [-1] * common,
    }
    for branch, ((ids, labels), owner) in enumerate(zip(examples, owners, strict=True), start=1):
        size = len(ids) - common
        own = (ids[common:], labels[common:], range(common, len(ids)), [branch] * size, [owner] * size)
        for column, values in zip(joined.values(), own, strict=True):
            column.extend(values)
    return joined


def joined_length(examples: Sequence[Example]) -> int:
    """Return how many tokens `share` makes of these answers."""
    whole = sum(len(ids) for ids, _ in examples)
    return whole - (len(examples) - 1) * _common(examples) if len(examples) > 1 else whole


def _common(examples: Sequence[Example]) -> int:
    """Return how many tokens all prompts begin with. Each keeps one of its own, which predicts its answer."""
    most = min(labels.count(IGNORED) for _, labels in examples) - 1
    unequal = (
        i for i, tokens in enumerate(zip(*(ids[:most] for ids, _ in examples), strict=True)) if len({*tokens}) > 1
    )
    return next(unequal, most)


def pad(sequences: Sequence[Joined], pad_id: int) -> dict[str, Any]:
    """Return the columns of `FILLS`, each B x T, padded on the right.

    T is `padded_length`: a CPU needs up to a second to prepare its kernels for a new shape.
    """
    import torch

    shape = (len(sequences), padded_length(max(len(sequence["input_ids"]) for sequence in sequences)))
    batch = {name: torch.full(shape, fill) for name, fill in (FILLS | {"input_ids": pad_id}).items()}
    for row, sequence in enumerate(sequences):
        for name, values in sequence.items():
            batch[name][row, : len(values)] = torch.tensor(values)
    return batch


def attention(branches: Tensor, dtype: Any) -> dict[str, Tensor]:
    """Return the mask that a model's forward pass needs.

    If every sequence has one answer, only the padding is masked, in the form that every attention kernel takes. Shared
    sequences need B x 1 x T x T additive values: a token sees what is before it in the beginning and in its own branch.
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
