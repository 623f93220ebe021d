"""Which arm answers a unit (a shopper, a session): a hash of experiment, salt and unit id, and nothing else."""

from __future__ import annotations

from bisect import bisect
from itertools import accumulate

import xxhash

from serve.experiments.config import Arm, ExperimentSettings


def position(experiment: ExperimentSettings, unit_id: str) -> float:
    """Return the unit's place in [0, 1): uniform over units, independent between experiments and salts."""
    # Each part has its length before it, so that no two experiments and units make the same text.
    parts = (experiment.name, experiment.salt, unit_id)
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return xxhash.xxh3_64_intdigest(text.encode()) / 2**64


def assign(experiment: ExperimentSettings, unit_id: str) -> Arm:
    """Return the arm that answers this unit; it is always the same one."""
    answering = [arm for arm in experiment.arms if not arm.shadow]
    place = bisect(list(accumulate(arm.share for arm in answering)), position(experiment, unit_id))
    return answering[min(place, len(answering) - 1)]  # the sum of the shares may round to just below 1


def shadows(experiment: ExperimentSettings) -> list[Arm]:
    """Return the arms that score every request and answer none."""
    return [arm for arm in experiment.arms if arm.shadow]


def unit_digest(experiment: ExperimentSettings, unit_id: str) -> str:
    """Return what stands for the unit in the exposures, so that its id need not be stored there."""
    return xxhash.xxh3_128_hexdigest(f"unit/{experiment.salt}/{unit_id}".encode())
