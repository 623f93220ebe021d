"""Splits are made by query, whatever the rows' order, and respect what the source says."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from cluster.base.errors import UserError
from mpcot.pairs.splits import split_queries
from mpcot.sources.config import SplitSettings

QUERIES = {f"q{i}": frozenset[str]() for i in range(2000)}
DEFAULT = SplitSettings()


def test_shares_are_kept_and_order_does_not_matter():
    result = split_queries(QUERIES, DEFAULT, 1).splits
    shuffled = dict(random.Random(0).sample(list(QUERIES.items()), len(QUERIES)))
    sizes = Counter(result.values())
    assert split_queries(shuffled, DEFAULT, 1).splits == result
    assert sizes["train"] / 2000 == pytest.approx(0.7, abs=0.03)
    assert sizes["dev"] / 2000 == pytest.approx(0.15, abs=0.03)


def test_a_new_query_moves_no_other_and_the_seed_matters():
    few = dict(list(QUERIES.items())[:1000])
    before, after = split_queries(few, DEFAULT, 1).splits, split_queries(QUERIES, DEFAULT, 1).splits
    assert all(after[query] == split for query, split in before.items())
    assert split_queries(few, DEFAULT, 2).splits != before


def test_official_test_is_respected_and_dev_carved_from_train():
    given = {f"q{i}": {"test" if i % 5 == 0 else "train"} for i in range(1000)}
    result = split_queries(given, DEFAULT, 1).splits
    assert {q for q, s in result.items() if s == "test"} == {q for q, s in given.items() if s == {"test"}}
    dev = sum(split == "dev" for split in result.values())
    assert dev / 800 == pytest.approx(0.15 / 0.85, abs=0.05)


def test_three_given_splits_stay_as_they_are():
    given = {"a": {"train"}, "b": {"dev"}, "c": {"test"}, "d": {"train"}}
    assert split_queries(given, DEFAULT, 1).splits == {"a": "train", "b": "dev", "c": "test", "d": "train"}


def test_query_in_two_splits_is_reported():
    result = split_queries({"a": {"train", "test"}, "b": {"train"}, "c": {"dev"}, "d": {"test"}}, DEFAULT, 1)
    assert result.in_two == {"a"}
    assert "a" not in result.splits


def test_unlabelled_takes_training_queries_only():
    settings = SplitSettings(unlabelled=0.3)
    before, after = split_queries(QUERIES, DEFAULT, 1).splits, split_queries(QUERIES, settings, 1).splits
    moved = {query for query in QUERIES if before[query] != after[query]}
    assert {before[query] for query in moved} == {"train"}
    assert {after[query] for query in moved} == {"unlabelled"}
    assert len(moved) / 1400 == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("count", [3, 4, 7])
def test_small_sets_still_have_every_split(count: int):
    for seed in range(30):
        result = split_queries({f"q{i}": frozenset() for i in range(count)}, DEFAULT, seed).splits
        assert set(result.values()) == {"train", "dev", "test"}


def test_too_few_queries_is_a_user_error():
    with pytest.raises(UserError, match="too few"):
        split_queries({"a": frozenset(), "b": frozenset()}, DEFAULT, 1)


@pytest.mark.parametrize("bad", [{"train": 0.9}, {"train": 0.0, "dev": 0.5, "test": 0.5}, {"unlabelled": 1.0}])
def test_impossible_shares_are_refused(bad: dict[str, float]):
    with pytest.raises(ValueError, match="split"):
        SplitSettings(**bad)
