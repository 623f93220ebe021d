"""Near-duplicates: answers whose sets of three words are nearly those of an answer that was kept.

What objects is always the exact Jaccard similarity. Within a pair the few kept answers are compared one by
one. Over a stage, MinHash (Broder 1997) with locality-sensitive hashing finds whom to compare with, among so
many of the newest kept ones: memory is bounded, and a duplicate that came long ago may pass.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any, Protocol

import xxhash

from mpcot.filters.config import NearDuplicateFilter
from mpcot.filters.objections import words_of

SHINGLE_WORDS = 3
PERMUTATIONS = 64
REMEMBERED = 20_000
MOST_SELECTIVE = 0.9
# A missed candidate passes unseen, a false one is only compared in vain: hash for few misses.
FALSE_HITS_AND_MISSES = (0.1, 0.9)
Shingles = frozenset[int]


class Kept(Protocol):
    """Answers kept so far, by what they say."""

    def has_like(self, group: tuple[str, ...], said: Shingles) -> bool:
        """Return whether one of them is alike."""
        ...

    def add(self, group: tuple[str, ...], said: Shingles) -> None:
        """Take one more."""
        ...


def shingles(text: str) -> Shingles:
    """Return the text's runs of three words as 32-bit hashes; a shorter text is one run."""
    words = words_of(text)
    starts = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return frozenset(xxhash.xxh32_intdigest(" ".join(words[i : i + SHINGLE_WORDS]).encode()) for i in starts)


def jaccard(one: Shingles, other: Shingles) -> float:
    """Return how much of what either says both say, 0 to 1."""
    return len(one & other) / len(one | other)


class KeptOfPair:
    """The kept answers of the pair at hand: a stage hands out its answers pair by pair."""

    def __init__(self, step: NearDuplicateFilter) -> None:
        self.step = step
        self.pair = ""
        self.said: dict[tuple[str, ...], list[Shingles]] = defaultdict(list)

    def has_like(self, group: tuple[str, ...], said: Shingles) -> bool:
        """Return whether a kept answer of the same pair, perspective and verdict is alike."""
        return group[0] == self.pair and any(jaccard(said, o) >= self.step.similarity for o in self.said[group])

    def add(self, group: tuple[str, ...], said: Shingles) -> None:
        """Take one more; a new pair's first one forgets those of the pair before it."""
        if group[0] != self.pair:
            self.pair = group[0]
            self.said.clear()
        self.said[group].append(said)


class KeptOfStage:
    """The newest kept answers, whatever their pair."""

    def __init__(self, step: NearDuplicateFilter) -> None:
        from datasketch import MinHashLSH

        self.step = step
        self.most = step.remembered or REMEMBERED
        # Above that the index finds no banding; candidates are compared exactly anyhow.
        self.index = MinHashLSH(min(step.similarity, MOST_SELECTIVE), PERMUTATIONS, FALSE_HITS_AND_MISSES)
        self.said: OrderedDict[int, tuple[tuple[str, ...], Shingles]] = OrderedDict()
        self.count = 0

    def has_like(self, group: tuple[str, ...], said: Shingles) -> bool:
        """Return whether a remembered answer of the same perspective and verdict is alike."""
        near = (self.said[place] for place in self.index.query(_minhash(said)))
        return any(of == group[1:] and jaccard(said, other) >= self.step.similarity for of, other in near)

    def add(self, group: tuple[str, ...], said: Shingles) -> None:
        """Take one more and forget the oldest beyond `remembered`."""
        self.index.insert(self.count, _minhash(said), check_duplication=False)
        self.said[self.count] = group[1:], said
        self.count += 1
        if len(self.said) > self.most:
            oldest, _ = self.said.popitem(last=False)
            self.index.remove(oldest)


def _minhash(said: Shingles) -> Any:
    from datasketch import MinHash

    made = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
    made.update_batch(sorted(said))
    return made


def kept_answers(step: NearDuplicateFilter) -> Kept:
    """Return an empty memory of what `within` says."""
    return KeptOfPair(step) if step.within == "pair" else KeptOfStage(step)
