"""Explains a score by the nearest training rationale per perspective, from the index that an export may carry."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from distill.student.rationale_index import RationaleIndex
from serve.http.schemas import Examples, Explanation


class Explainer:
    """Finds explanations for the latent vectors of pairs, and examples to try the service with."""

    def __init__(self, index: RationaleIndex) -> None:
        self.index = index

    def nearest(self, latents: np.ndarray, verdicts: Sequence[Sequence[str]]) -> list[list[Explanation]]:
        """Return, for latents BxLxD and verdicts BxP of B pairs, the nearest rationale of each perspective with one."""
        return [
            [Explanation.model_validate(n, from_attributes=True) for near in found.values() for n in near]
            for found in self.index.nearest(latents, verdicts)
        ]

    @cached_property
    def _texts(self) -> tuple[list[str], list[str]]:
        """The distinct queries and titles of the index, in its order."""
        rows = self.index.rows
        return rows["query"].unique().to_pylist(), rows["title"].unique().to_pylist()

    def examples(self, query: str, count: int) -> Examples:
        """Return up to `count` queries and titles of the index, first the titles that share most words with `query`."""
        queries, titles = self._texts
        words = set(query.lower().split())
        nearest = sorted(titles, key=lambda title: -len(words.intersection(title.lower().split())))
        return Examples(queries=queries[:count], titles=nearest[:count])


def load_explainer(export_dir: Path, perspectives: tuple[str, ...]) -> Explainer | None:
    """Load the index of an export folder, or return None where it carries none."""
    index = RationaleIndex.load(export_dir, perspectives)
    return Explainer(index) if index else None
