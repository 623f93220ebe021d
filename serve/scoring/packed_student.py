"""The student in the form that a processor computes fastest: without padding in the encoder, with packed weights.

Three things make it fast; `benchmarks/serving.py` measures them together:

- The pairs of a batch are strung together without padding, so that products and norms only touch real tokens. Padding
  exists only inside attention, which is a few per cent of the work.
- Weights are packed for oneDNN once, whereas a plain Linear packs them again at every call. Query, key and value are
  one product, and BERT's GELU is computed inside the product before it.
- Attention is two batched products with a softmax in float32 between them. For the few tokens of a pair, PyTorch's
  flash kernel for processors takes two to six times as long, and so does its softmax over bf16 rows whose length is not
  a multiple of 32.

Shapes: B pairs, T tokens of the longest, N tokens of all pairs (see `Ragged`), K heads, F width of one head.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cluster.base.processor import packs_weights
from cluster.base.torch_internals import PackedWeight
from distill.student.model import Student, StudentOutput

# oneDNN compiles a product for each number of rows, and keeps up to 1,024 of them: with all numbers of tokens it would
# compile again and again, and fill hundreds of MB. AMX computes 16 rows at a time in any case.
ROWS = 16
# In these encoders, tokens see each other only through attention; other encoders keep their padding.
FIRST_POSITION = {"bert": 0, "electra": 0}
# These start to count positions after that of the padding token.
AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")


class PackedLinear(nn.Module):
    """A Linear whose weight is packed beforehand; with the activation `gelu`, that is part of the product."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = PackedWeight(linear.weight.detach().to(dtype))
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.activation = "none"

    def forward(self, values: Tensor) -> Tensor:
        return self.weight.product(values, self.bias, self.activation)


def pack_linears(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace every Linear below `module`, and move a BERT layer's exact GELU into its product."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child, dtype))
        else:
            pack_linears(child, dtype)
    dense, activation = getattr(module, "dense", None), getattr(module, "intermediate_act_fn", None)
    if isinstance(dense, PackedLinear) and type(activation).__name__ == "GELUActivation":
        dense.activation, module.intermediate_act_fn = "gelu", nn.Identity()


def first_position(config: Any) -> int | None:
    """Return the position of a pair's first token in the encoder's table, or None where the encoder needs padding."""
    if getattr(config, "is_decoder", False) or getattr(config, "position_embedding_type", "absolute") != "absolute":
        return None
    if config.model_type in AFTER_PADDING:
        return config.pad_token_id + 1
    return FIRST_POSITION.get(config.model_type)


@dataclass(frozen=True)
class Ragged:
    """Where the tokens of a batch are, both padded and strung together.

    Attributes:
        kept: places of the N tokens among B*T: of the real ones, and of copies of the first that fill up `ROWS`.
        rows: for each of 3*B*K*T places of queries, keys and values in attention, which of N*3*K vectors belongs there;
            for padding, any.
        back: for each of N*K vectors, its place among B*K*T.
        bias: what attention adds to the scores, (B*K, 1, T), or None where no pair is padded.
    """

    shape: tuple[int, int]
    kept: Tensor
    rows: Tensor
    back: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, mask: Tensor, heads: int, dtype: torch.dtype) -> Ragged:
        """Return the places for a batch with the mask BxT."""
        pairs, tokens = mask.shape
        real = mask.bool()
        kept = real.flatten().nonzero()[:, 0]
        all_real = len(kept) == pairs * tokens
        kept = torch.cat([kept, kept[:1].expand(-len(kept) % ROWS)])  # a copy has the states of its original
        padded = torch.zeros(pairs * tokens, dtype=torch.long)
        padded[kept] = torch.arange(len(kept))
        head, part = torch.arange(heads), torch.arange(3)[:, None, None, None]
        rows = (padded.view(pairs, 1, tokens) * 3 + part) * heads + head[:, None]
        back = ((kept // tokens)[:, None] * heads + head) * tokens + (kept % tokens)[:, None]
        bias = None
        if not all_real:
            bias = torch.zeros(pairs, 1, 1, tokens, dtype=dtype).masked_fill_(~real[:, None, None], -torch.inf)
            bias = bias.expand(pairs, heads, 1, tokens).reshape(pairs * heads, 1, tokens)
        return cls((pairs, tokens), kept, rows.flatten(), back.flatten(), bias)


class RaggedLayer(nn.Module):
    """A layer of BERT or of an encoder that is built like it, for tokens strung together: NxH -> NxH."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        own = layer.attention.self
        self.width, self.scaling = own.attention_head_size, own.attention_head_size**-0.5
        self.qkv = joined(own.query, own.key, own.value)
        self.attended, self.intermediate, self.output = layer.attention.output, layer.intermediate, layer.output

    def forward(self, states: Tensor, ragged: Ragged) -> Tensor:
        """Let each pair's tokens attend to their own pair. One index puts both padding and heads into their places."""
        vectors = self.qkv(states).view(-1, self.width)
        places = (3, -1, ragged.shape[1], self.width)
        query, key, value = vectors.index_select(0, ragged.rows).view(places)  # each B*K x T x F
        if ragged.bias is None:
            scores = torch.bmm(query, key.transpose(1, 2)).mul_(self.scaling)
        else:
            scores = torch.baddbmm(ragged.bias, query, key.transpose(1, 2), alpha=self.scaling)
        found = torch.bmm(scores.softmax(-1, dtype=torch.float32).to(value.dtype), value)
        found = found.view(-1, self.width).index_select(0, ragged.back).view(states.shape)
        states = self.attended(found, states)
        return self.output(self.intermediate(states), states)


def joined(*linears: nn.Linear) -> nn.Linear:
    """Return a Linear whose outputs are those of the given ones, one after the other."""
    first = linears[0]
    whole = nn.Linear(first.in_features, sum(linear.out_features for linear in linears), dtype=first.weight.dtype)
    with torch.no_grad():
        whole.weight.copy_(torch.cat([linear.weight for linear in linears]))
        whole.bias.copy_(torch.cat([linear.bias for linear in linears]))
    return whole


class PackedStudent(nn.Module):
    """A student for inference on a processor. It answers like the given one, which stays as it is.

    Args:
        dtype: number format of the encoder; extractor, classifier and verdict heads stay in float32.
    """

    def __init__(self, student: Student, dtype: torch.dtype) -> None:
        super().__init__()
        self.student, self.dtype = copy.deepcopy(student).eval(), dtype
        encoder: Any = self.student.encoder
        nn.Module.to(encoder, dtype)
        self.first = first_position(encoder.config)
        if self.first is not None:
            self.layers = nn.ModuleList(RaggedLayer(layer) for layer in encoder.encoder.layer).eval()
            encoder.encoder.layer = nn.ModuleList()  # their weights are in `layers`
        if packs_weights("bf16" if dtype == torch.bfloat16 else "fp32"):
            pack_linears(encoder if self.first is None else self.layers, dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> StudentOutput:
        if self.first is None:
            states = self.student.encode(input_ids, attention_mask, token_type_ids)
        else:
            states = self._encode(input_ids, attention_mask, token_type_ids, self.first)
        return self.student.read(states.float(), attention_mask)

    def _encode(self, ids: Tensor, mask: Tensor, types: Tensor | None, first: int) -> Tensor:
        """Return token states BxTxH, zero where there is padding; `first` is the position of a pair's first token."""
        pairs, tokens = ids.shape
        encoder: Any = self.student.encoder
        ragged = Ragged.of(mask, encoder.config.num_attention_heads, self.dtype)
        positions = (ragged.kept % tokens + first)[None]
        kinds = None if types is None else types.flatten()[ragged.kept][None]
        found = encoder.embeddings(
            input_ids=ids.flatten()[ragged.kept][None], position_ids=positions, token_type_ids=kinds
        )
        if hasattr(encoder, "embeddings_project"):  # where ELECTRA's embeddings are narrower than its layers
            found = encoder.embeddings_project(found)
        found = found[0]
        for layer in self.layers:
            found = layer(found, ragged)
        states = found.new_zeros(pairs * tokens, found.shape[-1])
        return states.index_copy_(0, ragged.kept, found).view(pairs, tokens, -1)
