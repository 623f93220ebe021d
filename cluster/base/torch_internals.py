"""The private parts of PyTorch that this project rests on; their test fails loudly at an upgrade."""

from __future__ import annotations

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
