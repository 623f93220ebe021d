from __future__ import annotations

import math

import pytest
import torch

from distill.lrkd.losses import (
    alignment_loss,
    alignment_skill,
    balanced_weights,
    constant_loss,
    expected_gain,
    label_loss,
    margin_mse,
    smoothed_labels,
    soft_label_loss,
    teacher_margin_loss,
    verdict_loss,
)

ALL = torch.tensor([[True]])


def one(*numbers: float) -> torch.Tensor:
    return torch.tensor([[list(numbers)]])


def test_label_loss_of_even_logits_is_log_of_the_number_of_labels() -> None:
    loss = label_loss(torch.zeros(2, 4), torch.tensor([0, 3]))
    assert loss.tolist() == pytest.approx([math.log(4)] * 2)


def test_label_loss_multiplies_by_the_weight_of_the_gold_label() -> None:
    loss = label_loss(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([0.5, 3.0]))
    assert loss.tolist() == pytest.approx([0.5 * math.log(2), 3 * math.log(2)])


def test_a_smoothed_label_is_gold_and_teacher_in_parts() -> None:
    soft = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 0.0]])
    found = smoothed_labels(torch.tensor([1, 2]), soft, torch.tensor([True, False]), 0.2)
    torch.testing.assert_close(found, torch.tensor([[0.1, 0.85, 0.05], [0.0, 0.0, 1.0]]))
    assert label_loss(torch.zeros(2, 3), found).tolist() == pytest.approx([math.log(3)] * 2)


def test_balanced_weights_give_every_label_the_same_total_and_a_mean_of_one() -> None:
    weights = balanced_weights([6, 3, 0])
    assert weights == pytest.approx([0.75, 1.5, 0.0])
    assert 6 * weights[0] + 3 * weights[1] == pytest.approx(9)


@pytest.mark.parametrize(("reduction", "expected"), [("sum", 25.0), ("mean", 12.5)])
def test_mse_of_raw_vectors(reduction: str, expected: float) -> None:
    loss = alignment_loss(one(3, 0), one(0, 4), ALL, "mse", reduction=reduction, normalise=False)  # type: ignore[arg-type]
    assert loss.tolist() == pytest.approx([expected])


def test_mse_of_unit_vectors_ignores_length() -> None:
    # Orthogonal unit vectors lie sqrt(2) apart.
    assert alignment_loss(one(3, 0), one(0, 4), ALL).tolist() == pytest.approx([2.0])


def test_cosine_is_half_the_summed_mse_of_unit_vectors() -> None:
    first, second = torch.randn(5, 3, 8), torch.randn(5, 3, 8)
    mask = torch.ones(5, 3, dtype=torch.bool)
    mse, cosine = (alignment_loss(first, second, mask, kind) for kind in ("mse", "cosine"))  # type: ignore[arg-type]
    torch.testing.assert_close(mse, 2 * cosine)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_alignment_with_itself_is_nothing(kind: str) -> None:
    vectors = torch.randn(4, 2, 8)
    loss = alignment_loss(vectors, vectors, torch.ones(4, 2), kind)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, torch.zeros(4), atol=1e-6, rtol=0)


def test_infonce_by_hand() -> None:
    # Cosines: with the own target 1, with the other 0; temperature 1.
    vectors = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    loss = alignment_loss(vectors, 5 * vectors, torch.ones(2, 1), "infonce", temperature=1.0)
    assert loss.tolist() == pytest.approx([-math.log(math.e / (math.e + 1))] * 2)


def test_infonce_of_one_example_is_nothing_since_there_is_no_other() -> None:
    assert alignment_loss(one(1, 0), one(0, 1), ALL, "infonce").tolist() == pytest.approx([0.0])


def test_infonce_does_not_count_missing_targets_as_others() -> None:
    vectors = torch.randn(3, 1, 4)
    mask = torch.tensor([[True], [True], [False]])
    with_missing = alignment_loss(vectors, vectors.roll(1, 0), mask, "infonce")
    without = alignment_loss(vectors[:2], vectors.roll(1, 0)[:2], mask[:2], "infonce")
    torch.testing.assert_close(with_missing, torch.cat([without, torch.zeros(1)]))


def test_infonce_takes_no_equal_target_for_another() -> None:
    # The first two have the same target, so each sees but itself and the third, at cosine 0.
    latents = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    loss = alignment_loss(latents, 3 * latents, torch.ones(3, 1), "infonce", temperature=1.0)
    two, three = -math.log(math.e / (math.e + 1)), -math.log(math.e / (math.e + 2))
    assert loss.tolist() == pytest.approx([two, two, three])


def test_infonce_under_autocast_is_that_in_float32() -> None:
    torch.manual_seed(0)
    latents, targets, mask = torch.randn(8, 2, 64), torch.randn(8, 2, 64), torch.ones(8, 2)
    plain = alignment_loss(latents, targets, mask, "infonce")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(alignment_loss(latents, targets, mask, "infonce"), plain)


def test_the_best_constant_by_hand() -> None:
    # Two targets of length 1 at right angles: their mean is at cosine 1/sqrt(2) with both.
    targets, mask = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[9.0, 9.0]]]), torch.tensor([[True], [True], [False]])
    each = 2 - math.sqrt(2)
    assert constant_loss(targets, mask) == pytest.approx(2 / 3 * each)
    assert constant_loss(targets, mask, "cosine") == pytest.approx(each / 3)
    # As they are, the mean is (1/2, 1/2), a squared distance of 1/2 from both.
    assert constant_loss(targets, mask, normalise=False) == pytest.approx(1 / 3)
    assert constant_loss(targets, mask, normalise=False, reduction="mean") == pytest.approx(1 / 6)


@pytest.mark.parametrize("normalise", [True, False])
def test_no_constant_is_better_than_the_best(normalise: bool) -> None:
    torch.manual_seed(0)
    targets, mask = torch.randn(20, 3, 4) + 1, torch.rand(20, 3) < 0.7
    best = constant_loss(targets, mask, normalise=normalise)
    constant = torch.ones(3, 4, requires_grad=True)
    optimizer = torch.optim.LBFGS([constant], max_iter=200)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = alignment_loss(constant.expand(20, 3, 4), targets, mask, normalise=normalise).mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    assert best == pytest.approx(closure().item(), rel=1e-4)


def test_skill_is_the_share_of_the_loss_of_a_constant_that_is_gone() -> None:
    assert (alignment_skill(0.5, 2.0), alignment_skill(2.0, 2.0), alignment_skill(0.0, 2.0)) == (0.75, 0.0, 1.0)
    assert alignment_skill(0.0, 0.0) is None


@pytest.mark.parametrize("kind", ["mse", "cosine", "infonce"])
def test_a_masked_target_changes_neither_loss_nor_gradient_even_if_it_is_nan(kind: str) -> None:
    targets = torch.randn(3, 2, 4)
    targets[0, 1] = math.nan
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    latents = torch.randn(3, 2, 4, requires_grad=True)
    loss = alignment_loss(latents, targets, mask, kind)  # type: ignore[arg-type]
    loss.sum().backward()
    assert latents.grad is not None and torch.isfinite(latents.grad).all()
    assert loss[2] == 0 and not latents.grad[2].any() and not latents.grad[0, 1].any()
    assert latents.grad[0, 0].any() and latents.grad[1].any()


def test_alignment_is_the_mean_over_the_targets_that_exist() -> None:
    latents, targets = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    each = [alignment_loss(latents[:, p : p + 1], targets[:, p : p + 1], ALL) for p in range(2)]
    both = alignment_loss(latents, targets, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)


def test_soft_label_loss_by_hand_and_zero_at_the_teacher() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [0.0, 0.0]])
    soft = torch.tensor([[1.0, 0.0], [0.75, 0.25], [1.0, 0.0]])
    loss = soft_label_loss(logits, soft, torch.tensor([True, True, False]))
    assert loss.tolist() == pytest.approx([math.log(2), 0.0, 0.0], abs=1e-6)


def test_verdict_loss_averages_over_the_verdicts_given() -> None:
    logits = torch.zeros(2, 3, 4)
    loss = verdict_loss(logits, torch.tensor([[0, -1, 2], [-1, -1, -1]]))
    assert loss.tolist() == pytest.approx([math.log(4), 0.0])


def test_expected_gain() -> None:
    assert expected_gain(torch.tensor([[0.0, math.log(3)]]), torch.tensor([1.0, 0.2])).item() == pytest.approx(0.4)


def test_margin_mse_compares_margins_not_scores() -> None:
    student, teacher = torch.tensor([[5.0, 3.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [-7.0, -7.0]])
    assert margin_mse(student, teacher).tolist() == pytest.approx([1.0, 0.0])


def test_teacher_margins_by_hand() -> None:
    # Gains 1 and 0, so scores are the first probabilities: students 1/2, 1/4, 1/2, teachers 1/2, 1/2, 1.
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [0.0, 0.0], [9.0, 0.0]])
    soft = torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0], [float("nan"), 0.0]])
    given = logits, soft, torch.tensor([1.0, 0.0]), torch.tensor([True, True, True, False])
    # Squared gaps of the margins: (0, 1) 1/16, (0, 2) 1/4, (1, 2) 1/16.
    assert teacher_margin_loss(*given).tolist() == pytest.approx([5 / 32, 1 / 16, 5 / 32, 0.0])
    within = teacher_margin_loss(*given, groups=torch.tensor([7, 2, 7, 2]))
    assert within.tolist() == pytest.approx([1 / 4, 0.0, 1 / 4, 0.0])


def test_teacher_margins_do_not_mind_a_common_offset_and_one_row_has_none() -> None:
    soft, gains, judged = torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([1.0, 0.0]), torch.ones(2)
    shifted = torch.tensor([[0.5, 0.5], [0.4, 0.6]]).log()
    assert teacher_margin_loss(shifted, soft, gains, judged).tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
    assert teacher_margin_loss(shifted[:1], soft[:1], gains, judged[:1]).tolist() == [0.0]


@pytest.mark.parametrize("name", ["label", "mse", "cosine", "infonce", "soft", "verdict", "margin", "margins"])
def test_every_loss_has_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, requires_grad=True)
    logits, mask = x[:, 0], torch.ones(4, 3)
    soft, labels = torch.randn(4, 5).softmax(-1), torch.tensor([0, 1, 2, 3])
    losses = {
        "label": lambda: label_loss(logits, labels),
        "soft": lambda: soft_label_loss(logits, soft, torch.ones(4)),
        "verdict": lambda: verdict_loss(x, labels[:, None].expand(4, 3)),
        "margins": lambda: teacher_margin_loss(logits, soft, torch.linspace(1, 0, 5), torch.ones(4)),
        "margin": lambda: margin_mse(x[:, 0, :2], soft[:, :2]),
    }
    align = lambda: alignment_loss(x, torch.randn(4, 3, 5), mask, name)  # type: ignore[arg-type]  # noqa: E731
    losses.get(name, align)().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
