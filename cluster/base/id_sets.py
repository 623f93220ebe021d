"""Sets of ids that take 16 bytes per id, however long it is, to know which of many rows were seen."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xxhash

BYTES_PER_ID = 16


def _digests(ids: Iterable[str]) -> bytes:
    """Return the ids' digests. Among a billion ids, two share one of 128 bits with a probability of 1e-21."""
    return b"".join(xxhash.xxh3_128_digest(text.encode()) for text in ids)


class IdSet:
    """A sorted array of the digests of ids; an id that was given twice is in it twice."""

    def __init__(self, batches: Iterable[Iterable[str]] = ()) -> None:
        held = bytearray()
        for ids in batches:
            held += _digests(ids)
        self.held = np.frombuffer(held, f"S{BYTES_PER_ID}")
        self.held.sort()

    def __len__(self) -> int:
        return len(self.held)

    def has(self, ids: Iterable[str]) -> np.ndarray:
        """Return for each of n ids whether it is in the set, as n booleans."""
        wanted = np.frombuffer(_digests(ids), f"S{BYTES_PER_ID}")
        if not len(self):
            return np.zeros(len(wanted), bool)
        places = np.searchsorted(self.held, wanted)
        return self.held[np.minimum(places, len(self) - 1)] == wanted
