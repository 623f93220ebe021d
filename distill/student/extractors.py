"""Latent reasoning extractors, which turn token states into latent vectors. They are kept at inference.

Shapes: B batch, T tokens, P latent vectors (one, or one per perspective), H student width,
D target width, C codes, K attention heads, F width of one head, X hidden width.
Every extractor takes states BxTxH and a mask BxT (1 for tokens, 0 for padding) and returns BxPxD.
Control flow never depends on data, so that the modules can be traced and exported.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from cluster.base.errors import UserError
from distill.config import Extractor, GatExtractor, MlpExtractor, PolyExtractor

SMALL = 0.02  # standard deviation of new weights, as BERT draws its own


def build_extractor(settings: Extractor, width: int, latents: int, target_width: int) -> nn.Module | None:
    """Return the extractor that `settings` describes, or None for `none`.

    Args:
        width: H, of the token states.
        latents: P, the number of latent vectors.
        target_width: D, of one latent vector.
    """
    if isinstance(settings, MlpExtractor):
        return Mlp(width, settings.hidden, latents, target_width)
    if isinstance(settings, PolyExtractor):
        return Poly(width, settings.codes, latents, target_width)
    if isinstance(settings, GatExtractor):
        return Gat(width, settings.heads, settings.layers, latents, target_width)
    return None


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over tokens, without padding: states Bx..xTxH and a mask BxT -> Bx..xH."""
    weights = mask.to(states.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,b...th->b...h", weights, states)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax over the last dimension, with weight 0 where `mask` (broadcastable to `scores`) is 0."""
    return scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min).softmax(dim=-1)


class PerLatentLinear(nn.Module):
    """One Linear per latent vector: BxPxF -> BxPxD.

    With `near_identity` and equal widths it begins as the identity and a little noise.
    """

    def __init__(self, latents: int, width: int, target_width: int, near_identity: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(latents, width, target_width))
        self.bias = nn.Parameter(torch.zeros(latents, target_width))
        identity = near_identity and width == target_width
        nn.init.normal_(self.weight, std=SMALL if identity else 1 / math.sqrt(width))
        if identity:
            with torch.no_grad():
                self.weight.add_(torch.eye(width))

    def forward(self, vectors: Tensor) -> Tensor:
        return torch.einsum("bpf,pfd->bpd", vectors, self.weight) + self.bias


class Mlp(nn.Module):
    """Two layers over the token states, then masked mean pooling: mean_t(W2 gelu(W1 h_t)).

    The mean is taken before W2. As W2 is linear, the value is the same with T times less work.
    """

    def __init__(self, width: int, hidden: int, latents: int, target_width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, latents * target_width)
        self.shape = (latents, target_width)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        pooled = masked_mean(functional.gelu(self.inner(states)), mask)  # BxX
        return self.outer(pooled).unflatten(-1, self.shape)


class Poly(nn.Module):
    """Learned codes attend over the token states; Humeau et al. 2020 (arXiv 1905.01969), section 4.4.

    Step 1, as in the paper: code c_i gives y_i = sum_t softmax_t(c_i . h_t) h_t. Step 2: in the paper the candidate's
    embedding attends over y_1..y_C. A cross-encoder does not embed the candidate on its own, so a learned query for
    each latent vector attends instead. Scores are not divided by sqrt(H): codes and queries begin small and grow with
    training, whereas large ones behind a division would hardly move and stay a mean over tokens.
    """

    def __init__(self, width: int, codes: int, latents: int, target_width: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(SMALL * torch.randn(codes, width))
        self.queries = nn.Parameter(SMALL * torch.randn(latents, width))
        self.project = PerLatentLinear(latents, width, target_width, near_identity=True)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        scores = torch.einsum("ch,bth->bct", self.codes, states)
        features = masked_softmax(scores, mask[:, None, :]) @ states  # BxCxH
        choice = torch.einsum("ph,bch->bpc", self.queries, features).softmax(dim=-1)
        return self.project(choice @ features)


class GraphAttention(nn.Module):
    """One multi-head graph attention layer over fully connected tokens; Velickovic et al. 2018 (arXiv 1710.10903).

    e_ij = LeakyReLU(a . [W h_i || W h_j]) (eq. 1), alpha_ij = softmax_j(e_ij) over real tokens (eq. 2, 3),
    h'_i = sum_j alpha_ij W h_j (eq. 4, before its nonlinearity), per head: BxTxH -> BxKxTxF. Splitting a into
    its two halves makes e_ij a sum of a term of i and a term of j.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.project = nn.Linear(width, heads * head_width, bias=False)
        self.receiver = nn.Parameter(torch.empty(heads, head_width))
        self.sender = nn.Parameter(torch.empty(heads, head_width))
        for vector in (self.receiver, self.sender):
            nn.init.xavier_uniform_(vector)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        values = self.project(states).unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)  # BxKxTxF
        receiver = torch.einsum("bktf,kf->bkt", values, self.receiver)
        sender = torch.einsum("bktf,kf->bkt", values, self.sender)
        scores = functional.leaky_relu(receiver[..., :, None] + sender[..., None, :], 0.2)  # BxKxTxT
        return masked_softmax(scores, mask[:, None, None, :]) @ values


class Gat(nn.Module):
    """Graph attention over tokens, and then the masked mean.

    Inner layers concatenate their heads (eq. 5). The last layer averages a group of heads for
    each latent vector (eq. 6).
    """

    def __init__(self, width: int, heads: int, layers: int, latents: int, target_width: int) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"student.extractor.heads: {heads} does not divide the student's width of {width}")
        self.group = (latents, heads)
        self.inner = nn.ModuleList(GraphAttention(width, heads, width // heads) for _ in range(layers - 1))
        self.last = GraphAttention(width, latents * heads, width // heads)
        self.project = PerLatentLinear(latents, width // heads, target_width)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        for layer in self.inner:
            # The residual lets deeper layers see the encoder's token states.
            states = states + functional.elu(layer(states, mask)).transpose(1, 2).flatten(2)
        heads = self.last(states, mask).unflatten(1, self.group)  # BxPxKxTxF
        tokens = functional.elu(heads.mean(dim=2))  # BxPxTxF
        return self.project(masked_mean(tokens, mask))
