"""Prompts and answers as tokens, with the mask that keeps prompts and padding out of the loss.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

IGNORED = -100


def encode(tokenizer: Any, prompt: str, answer: str, max_tokens: int) -> tuple[list[int], list[int]]:
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


def pad(examples: Sequence[tuple[list[int], list[int]]], pad_id: int) -> dict[str, Any]:
    """Return `input_ids`, `labels` and `attention_mask`, each B x T, padded on the right."""
    import torch

    longest = max(len(ids) for ids, _ in examples)
    shape = (len(examples), longest)
    batch = {
        "input_ids": torch.full(shape, pad_id),
        "labels": torch.full(shape, IGNORED),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
    }
    for row, (ids, labels) in enumerate(examples):
        batch["input_ids"][row, : len(ids)] = torch.tensor(ids)
        batch["labels"][row, : len(labels)] = torch.tensor(labels)
        batch["attention_mask"][row, : len(ids)] = 1
    return batch
