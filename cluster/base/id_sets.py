"""Sets of ids that take 16 bytes per id, however long it is, to compare ledgers of many million rows."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

import numpy as np
import xxhash

BYTES_PER_ID = 16
CHUNK = 65536


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

    @classmethod
    def _of(cls, held: np.ndarray) -> IdSet:
        made = cls()
        made.held = held
        return made

    def __len__(self) -> int:
        return len(self.held)

    def has(self, ids: Iterable[str]) -> np.ndarray:
        """Return for each of n ids whether it is in the set, as n booleans."""
        return self._has(np.frombuffer(_digests(ids), f"S{BYTES_PER_ID}"))

    def _has(self, wanted: np.ndarray) -> np.ndarray:
        if not len(self):
            return np.zeros(len(wanted), bool)
        places = np.searchsorted(self.held, wanted)
        return self.held[np.minimum(places, len(self) - 1)] == wanted

    def minus(self, other: IdSet) -> IdSet:
        """Return the ids that are not in `other`, each once."""
        chunks = (self.held[i : i + CHUNK] for i in range(0, len(self), CHUNK))
        rest = [self.held[:0], *(chunk[~other._has(chunk)] for chunk in chunks)]
        return IdSet._of(np.unique(np.concatenate(rest)))

    def both(self, other: IdSet) -> IdSet:
        """Return the ids that are also in `other`, each once."""
        return self.minus(self.minus(other))

    def repeated(self) -> IdSet:
        """Return the ids that were given more than once, each once."""
        return IdSet._of(np.unique(self.held[1:][self.held[1:] == self.held[:-1]]))

    def first(self, batches: Iterable[list[str]], count: int) -> list[str]:
        """Return the first `count` ids of `batches`, in sorted order and each once, that are in the set."""

        def inside() -> Iterator[str]:
            for ids in batches:
                yield from (text for text, here in zip(ids, self.has(ids), strict=True) if here)

        # The ids of the set are distinct, but a batch may repeat one as often as its rows do.
        found: set[str] = set()
        for text in inside():
            found.add(text)
            if len(found) >= 2 * count:
                found = set(heapq.nsmallest(count, found))
        return sorted(found)[:count]
