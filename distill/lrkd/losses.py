"""The student's losses, as pure functions that return one number per example.

Shapes: B batch, P perspectives (or 1), D target width, C labels. All of them compute in float32. The training harness
sums the losses of a global batch, each times its example's weight, and divides them by the sum of these weights.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

EQUAL_COSINE = 1 - 1e-5  # targets above it are equal, apart from rounding


def label_loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy with the label: -w_y log softmax(z)_y, or with a distribution t: -sum_c w_c t_c log softmax(z)_c.

    Args:
        logits: BxC.
        labels: B label ids, or BxC distributions.
        class_weights: C, or None for 1 each.

    Returns: B.
    """
    return functional.cross_entropy(logits.float(), labels, weight=class_weights, reduction="none")


def smoothed_labels(labels: Tensor, soft: Tensor, judged: Tensor, share: float) -> Tensor:
    """Return gold labels mixed with the teacher's distribution: (1 - share) onehot(y) + share soft.

    This is label smoothing (Szegedy et al. 2016, arXiv 1512.00567, section 7) with the teacher's distribution in place
    of an even one.

    Args:
        labels: B label ids.
        soft: BxC, the teacher's distribution.
        judged: B, true where the teacher judged the pair; other labels stay as they are.

    Returns: BxC.
    """
    onehot = functional.one_hot(labels, soft.shape[1]).float()
    return torch.where(judged.bool()[:, None], (1 - share) * onehot + share * soft.float(), onehot)


def balanced_weights(counts: list[int]) -> list[float]:
    """Return weights that give every label the same total: n / (labels that occur * count), on average 1 over rows.

    This is the "balanced" heuristic of scikit-learn (King and Zeng 2001). A label that does not occur gets 0.
    """
    present = sum(count > 0 for count in counts)
    return [sum(counts) / (present * count) if count else 0.0 for count in counts]


def scheduled(weight: float, schedule: Literal["constant", "rise", "fade"], progress: float) -> float:
    """Return the weight of a part of the loss after the share `progress` of all steps; it rises or fades linearly."""
    return weight * {"constant": 1.0, "rise": progress, "fade": 1.0 - progress}[schedule]


def alignment_loss(
    latents: Tensor,
    targets: Tensor,
    mask: Tensor,
    kind: Literal["mse", "cosine", "infonce"] = "mse",
    *,
    reduction: Literal["mean", "sum"] = "sum",
    normalise: bool = True,
    temperature: float = 0.05,
) -> Tensor:
    """Return the distance of the latent vectors from the rationales' vectors, averaged over an example's targets.

    - mse: |r - t|^2, summed over or (`mean`) divided by D. LRKD, arXiv 2601.21611.
    - cosine: 1 - cos(r, t). With unit vectors the summed mse is twice this.
    - infonce: -log(exp(cos(r_b, t_b)/tau) / sum_c exp(cos(r_b, t_c)/tau)) over the targets t_c of the same
      perspective in the batch that differ from t_b; van den Oord et al. 2018 (arXiv 1807.03748), eq. 4.

    Args:
        latents: BxPxD.
        targets: BxPxD; masked ones may have any value.
        mask: BxP, true where there is a target. An example without targets has loss 0.
        normalise: whether mse scales both sides to unit length first; the other two kinds always do.

    Returns: B.
    """
    latents, mask = latents.float(), mask.bool()
    # Filled and not multiplied by the mask, because 0 x NaN is NaN.
    targets = targets.float().masked_fill(~mask[..., None], 0.0)
    if normalise or kind != "mse":
        latents, targets = functional.normalize(latents, dim=-1), functional.normalize(targets, dim=-1)
    if kind == "mse":
        distance = (latents - targets).square().sum(-1)
        distance = distance / latents.shape[-1] if reduction == "mean" else distance
    elif kind == "cosine":
        distance = 1 - (latents * targets).sum(-1)
    else:
        distance = _infonce(latents, targets, mask, temperature)
    kept = distance.masked_fill(~mask, 0.0)
    return kept.sum(1) / mask.sum(1).clamp(min=1)


def constant_loss(
    targets: Tensor,
    mask: Tensor,
    kind: Literal["mse", "cosine"] = "mse",
    *,
    reduction: Literal["mean", "sum"] = "sum",
    normalise: bool = True,
) -> float:
    """Return the mean alignment loss of the best constant vectors, one per latent: what knows nothing of the pair.

    The best constant is the mean of the targets or, where unit vectors are compared, its direction. A target counts as
    much as in `alignment_loss`. InfoNCE needs no search: equal scores are best and give the log of their number.

    Args:
        targets: BxPxD.
        mask: BxP, true where there is a target.
    """
    mask = mask.bool()
    weight = mask / mask.sum(1, keepdim=True).clamp(min=1)
    filled = targets.float().masked_fill(~mask[..., None], 0.0)
    if normalise or kind != "mse":
        filled = functional.normalize(filled, dim=-1)
    best = (weight[..., None] * filled).sum(0) / weight.sum(0).clamp(min=1e-12)[:, None]  # PxD
    each = alignment_loss(best.expand_as(targets), targets, mask, kind, reduction=reduction, normalise=normalise)
    return float(each.mean())


def alignment_skill(loss: float, constant: float) -> float | None:
    """Return 1 - L / L(best constant vector): 1 for perfect latents, 0 for none better than a constant.

    None where a constant is perfect too, as with one target or none.
    """
    return 1 - loss / constant if constant > 1e-9 else None


def _infonce(latents: Tensor, targets: Tensor, mask: Tensor, temperature: float) -> Tensor:
    # Autocast would round cosines to bf16, which at a temperature of .05 is more than many of their differences.
    with torch.autocast(latents.device.type, enabled=False):
        scores = torch.einsum("bpd,cpd->pbc", latents, targets) / temperature
        equal = torch.einsum("bpd,cpd->pbc", targets, targets) > EQUAL_COSINE
    others = ~torch.eye(len(latents), dtype=torch.bool, device=latents.device)
    dropped = ~mask.T[:, None, :] | (equal & others)
    scores = scores.masked_fill(dropped, torch.finfo(scores.dtype).min)
    return -scores.log_softmax(dim=-1).diagonal(dim1=1, dim2=2).T  # BxP


def soft_label_loss(logits: Tensor, soft: Tensor, mask: Tensor) -> Tensor:
    """KL(teacher || student) over labels; Hinton et al. 2015 (arXiv 1503.02531), at temperature 1.

    Args:
        logits: BxC.
        soft: BxC, the teacher's distribution.
        mask: B, true where the teacher judged the pair; the loss of other pairs is 0.

    Returns: B.
    """
    mask = mask.bool()
    soft = soft.float().masked_fill(~mask[:, None], 0.0)
    return functional.kl_div(logits.float().log_softmax(-1), soft, reduction="none").sum(-1)


def verdict_loss(logits: Tensor, verdicts: Tensor) -> Tensor:
    """Return each head's cross-entropy with its perspective's verdict, averaged over an example's verdicts.

    Args:
        logits: BxPxC.
        verdicts: BxP label ids, -1 for a missing verdict. An example without verdicts has loss 0.

    Returns: B.
    """
    each = functional.cross_entropy(logits.float().transpose(1, 2), verdicts, ignore_index=-1, reduction="none")
    return each.sum(1) / (verdicts >= 0).sum(1).clamp(min=1)


def expected_gain(logits: Tensor, gains: Tensor) -> Tensor:
    """Return one relevance score per pair from its label logits: sum_c softmax(z)_c gain_c. BxC, C -> B."""
    return (logits.float().softmax(-1) * gains).sum(-1)


def margin_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared difference of two judges' margins between two products of a query.

    ((s_1 - s_2) - (t_1 - t_2))^2; Hofstätter et al. 2020 (arXiv 2010.02666), used for product search in
    arXiv 2505.07105.

    Args:
        student: Bx2, scores of the two products.
        teacher: Bx2.

    Returns: B.
    """
    margins = student.float().diff(dim=1) - teacher.float().diff(dim=1)
    return margins.square().squeeze(1)


def teacher_margin_loss(
    logits: Tensor, soft: Tensor, gains: Tensor, judged: Tensor, groups: Tensor | None = None
) -> Tensor:
    """Return MarginMSE between the expected gains of student and teacher, averaged over an example's partners.

    Args:
        logits: BxC.
        soft: BxC, the teacher's distribution.
        gains: C.
        judged: B, true where the teacher judged the pair; other pairs have no partners and loss 0.
        groups: B query numbers; only pairs of the same query are partners. With None, all pairs of the batch are.

    Returns: B. An example without a partner has loss 0.
    """
    judged = judged.bool()
    soft = soft.float().masked_fill(~judged[:, None], 0.0)
    couples = torch.combinations(torch.arange(len(logits), device=logits.device))  # Kx2
    partners = judged[couples].all(1)
    if groups is not None:
        partners &= groups[couples[:, 0]] == groups[couples[:, 1]]
    couples = couples[partners]
    each = margin_mse(expected_gain(logits, gains)[couples], (soft * gains).sum(-1)[couples])
    total = torch.zeros(len(logits), device=logits.device).index_add(0, couples.flatten(), each.repeat_interleave(2))
    return total / torch.bincount(couples.flatten(), minlength=len(logits)).clamp(min=1)


def gradient_norms(part: Tensor, states: Tensor) -> Tensor:
    """Return the Euclidean norm of each example's gradient at the encoder's output: B, BxTxH -> B."""
    (gradient,) = torch.autograd.grad(part.sum(), states, retain_graph=True)
    return gradient.float().flatten(1).norm(dim=1)
