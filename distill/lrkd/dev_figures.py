"""What the figures on dev need besides the losses: how well a constant would align, and queries that can be ranked.

Shapes: N pairs, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cluster.base.errors import UserError
from distill.config import StudentConfig, StudentSettings
from distill.lrkd.losses import constant_loss
from distill.lrkd.teaching_rows import StudentRows
from distill.metrics import ndcg_at
from mpcot.schemes.scheme import Scheme


def constant_on_dev(student: StudentSettings, config: StudentConfig, dev: StudentRows) -> float:
    """Return the alignment loss of the best constant vectors on dev.

    It is 0 without an alignment, and with InfoNCE, for which it follows from the batches.
    """
    if not config.latents or not student.alignment_weight or student.alignment == "infonce":
        return 0.0
    rows = [(row["targets"], row["target_mask"]) for row in dev]
    targets, mask = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
    return constant_loss(
        targets, mask, student.alignment, reduction=student.reduction, normalise=student.normalise_targets
    )


def check_best_by_ndcg(student: StudentSettings, dev: StudentRows) -> None:
    """Refuse to be best by NDCG where no query of dev has products of different gain.

    Raises:
        UserError: there is no such query.
    """
    if student.train.best_by != "ndcg":
        return
    gains: dict[int, set[float]] = {}
    for group, label in zip(dev.groups, dev.labels(), strict=True):
        gains.setdefault(group, set()).add(dev.settings.scheme.gains[label])
    if not any(len(found) > 1 for found in gains.values()):
        raise UserError(
            "student.train.best_by: 'ndcg' needs dev queries whose products have labels of different gain, and there "
            "are none. Take loss, accuracy or macro_f1."
        )


def ndcg_on_dev(
    gold: Sequence[int], probabilities: Sequence[Sequence[float]], queries: Sequence[int], scheme: Scheme
) -> float | None:
    """Return NDCG@10 by expected gain; None without a query whose products differ in gain.

    Args:
        gold: N label ids.
        probabilities: NxC.
        queries: N query numbers.
    """
    found, _ = ndcg_at([scheme.codes[i] for i in gold], np.array(probabilities), [str(q) for q in queries], scheme)
    return found
