"""Losses over the products of a query, against the formulas of their papers and against NDCG."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from sklearn.metrics import ndcg_score

from distill.lrkd.ranking_losses import MU, gain_log_odds, lambdaloss, listnet, ranking_loss, ranknet

GAINS = torch.tensor([1.0, 0.1, 0.01, 0.0])
ALL = torch.ones(3, 3, dtype=torch.bool)


def test_log_odds_of_two_labels_are_the_difference_of_their_logits() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.5], [-40.0, 60.0]])
    assert gain_log_odds(logits, torch.tensor([3.0, 1.0])).tolist() == pytest.approx([3.0, 0.0, -100.0])


def test_log_odds_order_as_the_expected_gain_does() -> None:
    logits = torch.randn(20, 4)
    gain = logits.softmax(-1) @ GAINS
    assert gain_log_odds(logits, GAINS).argsort().tolist() == gain.argsort().tolist()
    torch.testing.assert_close(gain_log_odds(logits, GAINS).sigmoid(), gain)


def test_ranknet_by_hand() -> None:
    # Pairs with a better one: (0, 1) and (0, 2); 1 and 2 are equal.
    loss = ranknet(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([1.0, 0.0, 0.0]), ALL)
    first, second = math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))
    assert loss.tolist() == pytest.approx([(first + second) / 2, first, second])


def test_lambdaloss_by_the_formula() -> None:
    scores, gains = [0.5, 2.0, -1.0], [0.0, 0.1, 1.0]
    rank = [2, 1, 3]
    discount = [math.inf] + [math.log2(1 + r) for r in range(1, 5)]
    best = 1.0 / discount[1] + 0.1 / discount[2]
    expected = [0.0] * 3
    for i, j in permutations(range(3), 2):
        if gains[i] > gains[j]:
            apart = abs(rank[i] - rank[j])
            rho = abs(1 / discount[rank[i]] - 1 / discount[rank[j]])
            delta = abs(1 / discount[apart] - 1 / discount[apart + 1])
            cost = (rho + MU * delta) * (gains[i] - gains[j]) / best * math.log2(1 + math.exp(scores[j] - scores[i]))
            expected[i] += cost / 2
            expected[j] += cost / 2
    assert lambdaloss(torch.tensor(scores), torch.tensor(gains), ALL).tolist() == pytest.approx(expected)


def test_the_rank_part_of_lambdaloss_is_the_change_of_ndcg_by_a_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.lrkd.ranking_losses.MU", 0.0)
    scores, gains = torch.tensor([0.4, 0.3, 0.2]), torch.tensor([0.0, 0.0, 1.0])
    swapped = ndcg_score([[0, 0, 1]], [[0.2, 0.3, 0.4]]) - ndcg_score([[0, 0, 1]], [[0.4, 0.3, 0.2]])
    middle = ndcg_score([[0, 0, 1]], [[0.4, 0.2, 0.3]]) - ndcg_score([[0, 0, 1]], [[0.4, 0.3, 0.2]])
    expected = swapped * math.log2(1 + math.exp(0.2)) + middle * math.log2(1 + math.exp(0.1))
    assert lambdaloss(scores, gains, ALL).sum().item() == pytest.approx(expected, rel=1e-5)


def test_listnet_by_hand() -> None:
    # One product twice as probable to come first as each of two others, and a student that finds all alike.
    gains = torch.tensor([math.log(2), 0.0, 0.0])
    loss = listnet(torch.zeros(3), gains, ALL)
    assert loss.tolist() == pytest.approx([math.log(3) / 2, math.log(3) / 4, math.log(3) / 4])


@pytest.mark.parametrize("kind", ["ranknet", "lambdaloss", "listnet"])
def test_only_gold_pairs_of_the_same_query_are_compared(kind: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 4, requires_grad=True)
    labels, queries = torch.tensor([0, 1, 3, 0, 2, 1]), torch.tensor([7, 4, 7, 4, 9, 7])
    gold = torch.tensor([True, True, True, True, True, False])
    loss = ranking_loss(kind, logits, labels, GAINS, queries, gold)  # type: ignore[arg-type]
    for query in ([0, 2], [1, 3]):
        alone = ranking_loss(kind, logits[query], labels[query], GAINS, queries[query], gold[query])  # type: ignore[arg-type]
        torch.testing.assert_close(loss[query], alone)
    assert loss[[4, 5]].tolist() == [0, 0]
    loss.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad[:4].abs().sum(1).gt(0).all() and not logits.grad[4:].any()


@pytest.mark.parametrize("kind", ["ranknet", "lambdaloss", "listnet"])
def test_a_step_down_the_loss_raises_the_better_product(kind: str) -> None:
    logits = torch.zeros(2, 4, requires_grad=True)
    labels, together = torch.tensor([3, 0]), torch.tensor([0, 0])
    ranking_loss(kind, logits, labels, GAINS, together, torch.ones(2)).sum().backward()  # type: ignore[arg-type]
    assert logits.grad is not None
    after = gain_log_odds(-logits.grad, GAINS)
    assert after[1] > after[0]
