"""Finds near-duplicates: answers that share nearly all their runs of three words with an answer that was kept.

The exact Jaccard similarity decides. Within a pair all kept answers are compared. Within a stage, MinHash (Broder 1997)
with locality-sensitive hashing finds the ones to compare with, among a fixed number of the newest kept answers. That
bounds memory, so a duplicate of a much older answer may pass.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any

import xxhash

from mpcot.filters.config import NearDuplicateFilter
from mpcot.filters.objections import words_of

SHINGLE_WORDS = 3
PERMUTATIONS = 64
REMEMBERED = 20_000
MOST_SELECTIVE = 0.9
# A candidate that is missed passes, a false one only costs a comparison: so hash for few misses.
FALSE_HITS_AND_MISSES = (0.1, 0.9)
Shingles = frozenset[int]


def shingles(text: str) -> Shingles:
    """Return the runs of three words of the text as 32-bit hashes. A shorter text is one run."""
    words = words_of(text)
    starts = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return frozenset(xxhash.xxh32_intdigest(" ".join(words[i : i + SHINGLE_WORDS]).encode()) for i in starts)


def jaccard(one: Shingles, other: Shingles) -> float:
    """Return the share of the runs of either that both have."""
    return len(one & other) / len(one | other)


class KeptOfPair:
    """The kept answers of the current pair. Answers come pair by pair."""

    def __init__(self, step: NearDuplicateFilter) -> None:
        self.step = step
        self.pair = ""
        self.said: dict[tuple[str, ...], list[Shingles]] = defaultdict(list)

    def has_like(self, group: tuple[str, ...], said: Shingles) -> bool:
        """Return whether a kept answer of the same pair, perspective and verdict is a near-duplicate."""
        return group[0] == self.pair and any(jaccard(said, o) >= self.step.similarity for o in self.said[group])

    def add(self, group: tuple[str, ...], said: Shingles) -> None:
        """Remember an answer. The first one of a new pair replaces those of the pair before."""
        if group[0] != self.pair:
            self.pair = group[0]
            self.said.clear()
        self.said[group].append(said)


class KeptOfStage:
    """The newest kept answers of all pairs."""

    def __init__(self, step: NearDuplicateFilter) -> None:
        from datasketch import MinHashLSH

        self.step = step
        self.most = step.remembered or REMEMBERED
        # For higher values the index finds no bands. Candidates are compared exactly in any case.
        self.index = MinHashLSH(min(step.similarity, MOST_SELECTIVE), PERMUTATIONS, FALSE_HITS_AND_MISSES)
        self.said: OrderedDict[int, tuple[tuple[str, ...], Shingles]] = OrderedDict()
        self.count = 0

    def has_like(self, group: tuple[str, ...], said: Shingles) -> bool:
        """Return whether a remembered answer of the same perspective and verdict is a near-duplicate."""
        near = (self.said[place] for place in self.index.query(minhash(said)))
        return any(of == group[1:] and jaccard(said, other) >= self.step.similarity for of, other in near)

    def add(self, group: tuple[str, ...], said: Shingles) -> None:
        """Remember an answer, and forget the oldest one if there are more than `remembered`."""
        self.index.insert(self.count, minhash(said), check_duplication=False)
        self.said[self.count] = group[1:], said
        self.count += 1
        if len(self.said) > self.most:
            oldest, _ = self.said.popitem(last=False)
            self.index.remove(oldest)


def minhash(said: Shingles) -> Any:
    """Return the MinHash of the runs, to find near-duplicates by."""
    from datasketch import MinHash

    made = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
    made.update_batch(sorted(said))
    return made
