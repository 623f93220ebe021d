"""Whose vectors a pair learns if not its own: those of a donor in a control, or the mean of pairs that are like it.

Both come from the training pairs alone. A matched donor has the same gold label (or none, as an unlabelled pair) and
the same verdicts, and is another pair.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from distill.targets.linear_map import Vectors

Group = Hashable
Matched = tuple[str, Group]
AT_A_TIME = 256  # rows whose similarities to all donors of a group are in memory at the same time


def ring_donors(ids: Sequence[str], seed: int) -> list[str]:
    """Return for each row its neighbour in a shuffled ring, so that no row of two or more gets its own."""
    ring = np.random.default_rng(seed).permutation(len(ids))
    found = list(ids)
    for row, source in zip(ring, np.roll(ring, 1), strict=True):
        found[row] = ids[source]
    return found


def random_donors(rows: Sequence[Matched], pool: Iterable[Matched], seed: int) -> list[str | None]:
    """Return for each row a random other pair of its group in the pool, or None if there is none.

    Args:
        rows, pool: id and group of each pair.
    """
    draw, groups = np.random.default_rng(seed), _grouped(pool)
    members = {group: list(places) for group, places in groups.items()}
    found: list[str | None] = []
    for pair_id, group in rows:
        places = groups.get(group, {})
        others = len(places) - (pair_id in places)
        place = int(draw.integers(others)) if others else None
        if place is not None and place >= places.get(pair_id, others):
            place += 1  # the row's own place is passed over
        found.append(None if place is None else members[group][place])
    return found


def nearest_donors(
    rows: Sequence[Matched], pool: Iterable[Matched], vector: Callable[[str], np.ndarray]
) -> list[str | None]:
    """Return for each row the other pair of its group in the pool whose vector has the largest cosine with its own.

    Args:
        vector: returns the vector of a pair by its id.
    """
    found: list[str | None] = [None] * len(rows)
    groups = _grouped(pool)
    wanted: dict[Group, list[int]] = defaultdict(list)
    for row, (_, group) in enumerate(rows):
        wanted[group].append(row)
    for group, members in wanted.items():
        places = groups.get(group, {})
        if not places:
            continue
        donors, theirs = list(places), _unit([vector(donor) for donor in places])
        for start in range(0, len(members), AT_A_TIME):
            part = members[start : start + AT_A_TIME]
            similar = _unit([vector(rows[row][0]) for row in part]) @ theirs.T
            for row, scores in zip(part, similar, strict=True):
                if rows[row][0] in places:
                    scores[places[rows[row][0]]] = -np.inf
                best = int(scores.argmax())
                found[row] = donors[best] if np.isfinite(scores[best]) else None
    return found


def mean_vectors(
    pool: Iterable[Matched], vectors: Callable[[str], Sequence[np.ndarray | None]]
) -> dict[Group, Vectors]:
    """Return the mean vectors of each group of the pool, one per perspective; None where no pair of the group has one.

    They are the prototypes of Snell, Swersky and Zemel 2017 (arXiv 1703.05175), eq. 1, of frozen vectors.

    Args:
        vectors: returns the vectors of a pair by its id, one per perspective.
    """
    sums: dict[Group, list[tuple[np.ndarray | float, int]]] = {}
    for pair_id, group in pool:
        own = vectors(pair_id)
        before = sums.get(group, [(0.0, 0)] * len(own))
        sums[group] = [
            (total, count) if vector is None else (total + vector.astype(float), count + 1)
            for (total, count), vector in zip(before, own, strict=True)
        ]
    return {group: [np.asarray(t / n, np.float32) if n else None for t, n in found] for group, found in sums.items()}


def _grouped(pool: Iterable[Matched]) -> dict[Group, dict[str, int]]:
    """Return the place of each pair within its group."""
    groups: dict[Group, dict[str, int]] = defaultdict(dict)
    for pair_id, group in pool:
        groups[group][pair_id] = len(groups[group])
    return groups


def _unit(vectors: Sequence[np.ndarray]) -> np.ndarray:
    stacked = np.stack(vectors)
    return stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12)
