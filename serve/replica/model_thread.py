"""The thread on which all models of a replica work, and how long what waits for it is going to take."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

KEPT = 0.9  # of what was measured before, at each batch


class Pace:
    """How long a model takes for pairs, from its latest batches; each counts by its pairs.

    Args:
        assumed_s: seconds per pair until the first batch is measured.
    """

    def __init__(self, assumed_s: float) -> None:
        self.assumed_s, self.seconds, self.pairs = assumed_s, 0.0, 0.0

    def measured(self, pairs: int, seconds: float) -> None:
        """Take a batch into account."""
        self.seconds, self.pairs = KEPT * self.seconds + seconds, KEPT * self.pairs + pairs

    def seconds_for(self, pairs: int) -> float:
        """Return how long so many pairs are going to take."""
        return pairs * (self.seconds / self.pairs if self.pairs else self.assumed_s)

    def pairs_in(self, seconds: float, most: int) -> int:
        """Return how many pairs are done within the time, from 1 to `most`."""
        one = self.seconds_for(1)
        return most if one * most <= seconds else max(1, int(seconds / one))


class ModelThread(ThreadPoolExecutor):
    """One thread for the models of a replica: torch works in parallel inside a call, so they take turns.

    Attributes:
        queues: for each model, how many seconds its work takes that runs or waits; 0 where there is none.
    """

    def __init__(self) -> None:
        super().__init__(1, thread_name_prefix="scorer")
        self.queues: list[Callable[[], float]] = []

    def ahead_s(self) -> float:
        """Return the predicted seconds until the thread is done with all that it has to do now."""
        return sum(queue() for queue in self.queues)
