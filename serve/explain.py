"""Explanations of a score: the nearest training rationale per perspective, from the index that an export may carry."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distill.index import RationaleIndex
from serve.api import Explanation


class Explainer:
    """Turns a pair's latent vectors into what the service answers."""

    def __init__(self, index: RationaleIndex) -> None:
        self.index = index

    def nearest(self, latents: np.ndarray) -> list[Explanation]:
        """Return the nearest rationale of each perspective that has one, for latent vectors LxD of one pair."""
        found = self.index.nearest(latents)
        return [Explanation.model_validate(n, from_attributes=True) for near in found.values() for n in near]


def load_explainer(export_dir: Path, perspectives: tuple[str, ...]) -> Explainer | None:
    """Load the index of an export folder; None where it carries none."""
    index = RationaleIndex.load(export_dir, perspectives)
    return Explainer(index) if index else None
