"""Assigns queries to splits by a hash of query and seed, so that neither rows nor their order matter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.base.errors import UserError
from cluster.base.stage_folder import digest
from mpcot.sources.config import SplitSettings

LABELLED = ("train", "dev", "test")


@dataclass(frozen=True)
class QuerySplits:
    """The split of each query's labelled rows, and the queries that the source puts into two splits."""

    splits: Mapping[str, str]
    in_two: frozenset[str]


def unit_hash(*parts: object) -> float:
    """Return a number in [0, 1) that depends only on `parts`."""
    return int(digest(list(parts), 13), 16) / 16**13


def split_queries(given: Mapping[str, Iterable[str]], settings: SplitSettings, seed: int) -> QuerySplits:
    """Return the split of every query.

    Args:
        given: the splits that the source names for the labelled rows of each query, if any.
        settings: the shares. If the source has a dev or test split itself, its training queries are not moved there.
        seed: the seed of the run.

    Raises:
        UserError: there are fewer queries than splits that have a share.
    """
    named = {query: frozenset(splits) & set(LABELLED) for query, splits in given.items()}
    in_two = frozenset(query for query, splits in named.items() if len(splits) > 1)
    present = frozenset().union(*named.values()) if named else frozenset()
    carved = [name for name in LABELLED if name == "train" or name not in present]
    result = {}
    for query in sorted(set(named) - in_two):
        choices = LABELLED if not named[query] else carved if "train" in named[query] else tuple(named[query])
        result[query] = _deal(unit_hash("split", query, seed), choices, settings)
    _fill_empty(result, named, settings, seed)
    dropped = (q for q, split in result.items() if split == "train")
    for query in [q for q in dropped if unit_hash("unlabelled", q, seed) < settings.unlabelled]:
        result[query] = "unlabelled"
    return QuerySplits(result, in_two)


def _deal(point: float, choices: Iterable[str], settings: SplitSettings) -> str:
    shares = {name: getattr(settings, name) for name in choices}
    total = sum(shares.values())
    if len(shares) == 1 or total == 0:
        return next(iter(shares))
    for name, share in shares.items():
        point -= share / total
        if point < 0:
            return name
    return [name for name, share in shares.items() if share][-1]


def _fill_empty(
    result: dict[str, str], named: Mapping[str, frozenset[str]], settings: SplitSettings, seed: int
) -> None:
    """Move a training query to each split that is still empty, as small data needs dev and test splits as well."""
    for name in LABELLED:
        if getattr(settings, name) == 0 or name in result.values():
            continue
        sizes = Counter(result.values())
        free = [q for q, split in result.items() if sizes[split] > 1 and named[q] <= {"train"}]
        spare = sorted(free, key=lambda q: (result[q] != "train", unit_hash("spare", q, seed)))
        if not spare:
            raise UserError(
                f"split.{name}: {len(result)} labelled queries are too few for train, dev and test splits "
                f"(queries are never divided). Give more queries or set split.{name} = 0"
            )
        result[spare[0]] = name
