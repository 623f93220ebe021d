"""Every private part of PyTorch and transformers that this project rests on; its test fails loudly at an upgrade."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class PackedWeight:
    """A matrix that oneDNN has laid out beforehand; a plain Linear has it laid out anew at every call.

    The operators are those that PyTorch's own compiler puts in place of a frozen Linear.

    Args:
        weight: as of a Linear, outputs x inputs.

    Raises:
        AttributeError: this PyTorch has no such operators.
        RuntimeError: the processor lacks the instructions for this number format.
    """

    def __init__(self, weight: Tensor) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)

    def product(self, values: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """Return `activation(values @ weight.T + bias)`; the activation is `none` or `gelu`, the exact one."""
        return torch.ops.mkldnn._linear_pointwise(values, self.packed, bias, activation, [], "none")


def register_attention(name: str, attention: Callable[..., tuple[Tensor, None]]) -> None:
    """Make `attention` known to transformers under `name`, without a mask of its own."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    def no_mask(*_: Any, **__: Any) -> None:
        return None

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, no_mask)
