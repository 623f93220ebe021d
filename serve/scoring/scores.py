"""What a student says of some pairs, as arrays.

Shapes: N pairs, P perspectives, D width of a latent vector, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scores:
    """Label probabilities NxC; verdict probabilities NxPxC and latent vectors NxPxD, or None where there are none.

    `tokens` is how many tokens each pair has, and `unknown` how many of them the tokenizer does not know, both N; the
    latter is None where the tokenizer has no token for what it does not know.
    """

    probabilities: np.ndarray
    verdicts: np.ndarray | None
    latents: np.ndarray | None
    tokens: np.ndarray
    unknown: np.ndarray | None = None

    def taken(self, rows: np.ndarray) -> Scores:
        """Return the scores of these rows alone."""
        parts = (self.verdicts, self.latents, self.unknown)
        verdicts, latents, unknown = (None if part is None else part[rows] for part in parts)
        return Scores(self.probabilities[rows], verdicts, latents, self.tokens[rows], unknown)

    @property
    def right(self) -> np.ndarray:
        """Which of the N pairs have numbers alone; of anything else, the largest would be a label all the same."""
        given = (part for part in (self.probabilities, self.verdicts, self.latents) if part is not None)
        return np.logical_and.reduce([np.isfinite(part.reshape(len(part), -1)).all(1) for part in given])
