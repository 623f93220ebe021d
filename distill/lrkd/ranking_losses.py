"""Losses that compare the products of a query by the gains of their gold labels.

Shapes: B batch, C labels. Only examples of the same query that meet in a batch are compared. Each function returns one
number per example, so that the sum over the batch is the loss of its queries.

Pairs are compared by the log-odds of the expected gain: they order products as serving does, and unlike the gain itself
they have no bounds, so that a pair can become as sure as it should.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from distill.lrkd.losses import expected_gain

Ranking = Literal["ranknet", "lambdaloss", "listnet"]
MU = 10.0  # weight of the second part of LambdaLoss, as in the paper's experiments


def ranking_loss(kind: Ranking, logits: Tensor, labels: Tensor, gains: Tensor, queries: Tensor, gold: Tensor) -> Tensor:
    """Return the loss `kind` of a batch, per example.

    Args:
        logits: BxC.
        labels: B label ids.
        gains: C, with at least two values.
        queries: B query numbers.
        gold: B, true where a person gave the label; other examples take no part and have loss 0.

    Returns: B.
    """
    same = (queries[:, None] == queries) & gold.bool() & gold.bool()[:, None]  # BxB
    if kind == "listnet":
        return listnet(expected_gain(logits, gains), gains[labels], same)
    scores = gain_log_odds(logits, gains)
    return (ranknet if kind == "ranknet" else lambdaloss)(scores, gains[labels], same)


def gain_log_odds(logits: Tensor, gains: Tensor) -> Tensor:
    """Return log(g / (1 - g)) of the expected gain g, scaled to lie between 0 and 1: BxC, C -> B.

    With two labels this is the difference of their logits.
    """
    share = (gains - gains.min()) / (gains.max() - gains.min())
    logs = logits.float().log_softmax(-1)
    return (logs + share.log()).logsumexp(-1) - (logs + (1 - share).log()).logsumexp(-1)


def ranknet(scores: Tensor, gains: Tensor, same: Tensor) -> Tensor:
    """Return RankNet's cost, averaged over an example's partners of another gain.

    For a pair whose first product is better, with o = s_1 - s_2: -o + log(1 + e^o); Burges et al. 2005 (ICML,
    "Learning to rank using gradient descent"), eq. 3 with a target probability of 1.

    Args:
        scores: B.
        gains: B.
        same: BxB, true where two examples are of one query.

    Returns: B.
    """
    better = same & (gains[:, None] > gains)
    cost = functional.softplus(scores - scores[:, None]) * better  # [i, j]: i is the better one
    partners = better.sum(0) + better.sum(1)
    return (cost.sum(0) + cost.sum(1)) / partners.clamp(min=1)


def lambdaloss(scores: Tensor, gains: Tensor, same: Tensor) -> Tensor:
    """Return LambdaLoss with NDCG-Loss2++, half of each pair's cost for each of its two examples.

    Over pairs of a query with y_i > y_j: (rho_ij + mu delta_ij) |G_i - G_j| log2(1 + e^-(s_i - s_j)), where G is the
    gain over the query's best DCG, D_r = log2(1 + r) the discount of rank r, i and j stand for ranks by score,
    rho_ij = |1/D_i - 1/D_j| and delta_ij = |1/D_|i-j| - 1/D_(|i-j|+1)|; Wang et al. 2018 (CIKM, "The LambdaLoss
    framework for ranking metric optimization"), section 6. Ranks are those within the batch and have no gradient.

    Args:
        scores: B.
        gains: B, gains as NDCG counts them here, not exponents of 2.
        same: BxB, true where two examples are of one query.

    Returns: B.
    """
    best = (same * (gains / _discount(_ranks(gains, same)))).sum(1)  # DCG of the best order
    rank = _ranks(scores.detach(), same)
    apart = (rank[:, None] - rank).abs()
    rho = (1 / _discount(rank)[:, None] - 1 / _discount(rank)).abs()
    delta = (1 / _discount(apart.clamp(min=1)) - 1 / _discount(apart + 1)).abs()
    gap = (gains[:, None] - gains) / best.clamp(min=1e-12)
    better = same & (gains[:, None] > gains)
    odds = functional.softplus(scores - scores[:, None]) / math.log(2)
    cost = torch.where(better, (rho + MU * delta) * gap * odds, 0.0)
    return (cost.sum(0) + cost.sum(1)) / 2


def listnet(scores: Tensor, gains: Tensor, same: Tensor) -> Tensor:
    """Return each example's term of ListNet's cross-entropy of top-one probabilities: -P_y(j) log P_s(j).

    P_s(j) = exp(s_j) / sum_k exp(s_k) over the query; Cao et al. 2007 (ICML, "Learning to rank: from pairwise approach
    to listwise approach"), eq. 4 and 7 with phi = exp. With expected gains as scores the best scores are the gains, so
    the loss asks nothing else of the probabilities than cross-entropy does.

    Args:
        scores: B.
        gains: B.
        same: BxB, true where two examples are of one query.

    Returns: B. An example without another of its query has loss 0.
    """
    alone = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    hidden = ~(same | alone)  # who is not compared is a list of one, whose loss is 0
    lowest = torch.finfo(scores.dtype).min
    student, gold = (v - v.expand(len(v), -1).masked_fill(hidden, lowest).logsumexp(1) for v in (scores, gains))
    return -gold.exp() * student


def _discount(rank: Tensor) -> Tensor:
    return torch.log2(1 + rank)


def _ranks(values: Tensor, same: Tensor) -> Tensor:
    """Return each example's rank within its query, from 1 for the highest value; equal ones rank in the order given."""
    place = torch.arange(len(values), device=values.device)
    above = (values > values[:, None]) | ((values == values[:, None]) & (place < place[:, None]))
    return 1 + (above & same).sum(1).float()
