"""Assigns queries, or groups of them, to splits by a hash and the seed, so that neither rows nor their order matter."""

from __future__ import annotations

from collections import Counter, defaultdict
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


def split_queries(
    given: Mapping[str, Iterable[str]], settings: SplitSettings, seed: int, groups: Mapping[str, str] | None = None
) -> QuerySplits:
    """Return the split of every query. A query is dealt by its id, and those of a group by the least of their ids.

    Args:
        given: the splits that the source names for the labelled rows of each query, if any.
        settings: the shares. If the source has a dev or test split itself, its training queries are not moved there.
        seed: the seed of the run.
        groups: the least id of the group of each query that is not alone. A group lies in one split, except for queries
            whose split the source names.

    Raises:
        UserError: there are fewer queries than splits that have a share.
    """
    named = {query: frozenset(splits) & set(LABELLED) for query, splits in given.items()}
    in_two = frozenset(query for query, splits in named.items() if len(splits) > 1)
    present = frozenset().union(*named.values()) if named else frozenset()
    carved = [name for name in LABELLED if name == "train" or name not in present]
    dealt = [query for query in sorted(named) if query not in in_two]
    units = _units(dealt, named, groups or {})
    result = {}
    for query, (group, wanted) in units.items():
        choices = LABELLED if wanted is None else carved if wanted == "train" else (wanted,)
        result[query] = _deal(unit_hash("split", group, seed), choices, settings)
    _fill_empty(result, units, settings, seed)
    dropped = (q for q, split in result.items() if split == "train")
    for query in [q for q in dropped if unit_hash("unlabelled", units[q][0], seed) < settings.unlabelled]:
        result[query] = "unlabelled"
    return QuerySplits(result, in_two)


def _units(
    queries: Iterable[str], named: Mapping[str, frozenset[str]], groups: Mapping[str, str]
) -> dict[str, tuple[str, str | None]]:
    """Return the least id of each query's group, with the split that the source names for it or for one like it.

    Where the source itself divides a group, its other queries are for training, so that no more of it is tested.
    """
    queries = list(queries)
    wanted: dict[str, set[str]] = defaultdict(set)
    for query in queries:
        wanted[groups.get(query, query)] |= named[query]

    def unit(query: str) -> tuple[str, str | None]:
        group = groups.get(query, query)
        splits = named[query] or wanted[group]
        return group, None if not splits else "train" if len(splits) > 1 else next(iter(splits))

    return {query: unit(query) for query in queries}


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
    result: dict[str, str], units: Mapping[str, tuple[str, str | None]], settings: SplitSettings, seed: int
) -> None:
    """Move a training query, with its group, to each split that is empty, as small data needs dev and test as well."""
    for name in LABELLED:
        if getattr(settings, name) == 0 or name in result.values():
            continue
        sizes = Counter(split for _, split in {(units[q], split) for q, split in result.items()})
        free = {units[q]: split for q, split in result.items() if sizes[split] > 1 and units[q][1] in (None, "train")}
        spare = sorted(free, key=lambda unit: (free[unit] != "train", unit_hash("spare", unit[0], seed)))
        if not spare:
            raise UserError(
                f"split.{name}: {len(result)} labelled queries are too few for train, dev and test splits "
                f"(queries are never divided). Give more queries or set split.{name} = 0"
            )
        result.update({query: name for query, unit in units.items() if unit == spare[0]})
