"""The fit of the vote: temperatures and weights by hand, and what they make of a judgement."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.base.errors import UserError
from cluster.base.tables import read_table, write_table
from mpcot.config import JudgeSettings
from mpcot.judgements import rewrite
from mpcot.records import JUDGEMENT, PAIR
from mpcot.schemes.scheme import load_scheme
from mpcot.vote_fit import MOST_LOG_WEIGHT, VoteFit, fit_vote

BINARY = load_scheme("binary")
YES, NO = BINARY.codes


def judged(*sure: float | None) -> dict[str, Any]:
    """A judgement with the probability of YES of each perspective; None has not answered."""
    soft = [None if p is None else [p, 1 - p] for p in sure]
    verdicts = [None if p is None else YES if p >= 0.5 else NO for p in sure]
    mean = np.mean([s for s in soft if s], axis=0).tolist()
    said = {"rationales": [v and "because" for v in verdicts], "origin": [v and "teacher" for v in verdicts]}
    return {
        "pair_id": "p",
        "vote": YES,
        "agreement": 0.0,
        "soft": mean,
        "verdicts": verdicts,
        "perspective_soft": soft,
    } | said


def test_weights_decide_the_vote_and_the_soft_labels() -> None:
    row = VoteFit((1.0, 1.0, 1.0), (0.6, 0.2, 0.2)).apply(judged(0.9, 0.2, 0.3), BINARY)
    assert row["vote"] == YES and row["agreement"] == pytest.approx(1 / 3)
    assert row["soft"] == pytest.approx([0.54 + 0.04 + 0.06, 0.06 + 0.16 + 0.14])
    assert row["verdicts"] == [YES, NO, NO] and row["rationales"] == ["because"] * 3
    even = VoteFit((1.0,) * 3, (1 / 3,) * 3).apply(judged(0.9, 0.2, 0.3), BINARY)
    assert even["vote"] == NO and even["agreement"] == pytest.approx(2 / 3)


def test_a_perspective_without_a_verdict_has_no_weight() -> None:
    row = VoteFit((1.0, 1.0), (0.9, 0.1)).apply(judged(None, 0.3), BINARY)
    assert row["vote"] == NO and row["soft"] == pytest.approx([0.3, 0.7]) and row["perspective_soft"][0] is None
    assert row["agreement"] == pytest.approx(1 / 2)


def test_a_temperature_is_its_perspective_s_own() -> None:
    """At T = 2 the odds of 9 to 1 become 3 to 1."""
    row = VoteFit((2.0, 1.0), (0.5, 0.5)).apply(judged(0.9, 0.9), BINARY)
    assert row["perspective_soft"] == [pytest.approx([0.75, 0.25]), pytest.approx([0.9, 0.1])]
    assert row["soft"] == pytest.approx([0.825, 0.175])


def test_equal_weights_of_a_tie_go_by_the_soft_labels() -> None:
    assert VoteFit((1.0, 1.0), (0.5, 0.5)).apply(judged(0.6, 0.1), BINARY)["vote"] == NO
    assert VoteFit((1.0, 1.0), (0.5, 0.5)).apply(judged(0.9, 0.4), BINARY)["vote"] == YES


def test_the_fit_trusts_who_is_right_and_calms_who_is_too_sure() -> None:
    """The first says 0.9 and is right in two of three: 9^(1/T) = 2. The second is right in one of three at 0.9."""
    rows = [judged(0.9, 0.9)] * 6 + [judged(0.9, 0.1)] * 2 + [judged(0.9, 0.9)]
    gold = [YES] * 6 + [NO] * 3
    fit, losses = fit_vote(rows, gold, BINARY)
    assert fit.temperatures[0] == pytest.approx(math.log(9) / math.log(2), rel=1e-3)
    assert fit.temperatures[1] < 1.1  # right in eight of nine
    assert sum(fit.weights) == pytest.approx(1)
    assert fit.weights[1] > 0.9 and fit.weights[0] >= math.exp(-2 * MOST_LOG_WEIGHT) / 2
    before = -(6 * math.log(0.9) + 2 * math.log(0.5) + math.log(0.1)) / 9
    assert losses["log_loss_before"] == pytest.approx(before)
    after = [fit.apply(row, BINARY)["soft"][BINARY.index(label)] for row, label in zip(rows, gold, strict=True)]
    assert losses["log_loss_after"] == pytest.approx(-np.log(after).mean()) and losses["log_loss_after"] < before


def test_without_dev_pairs_there_is_nothing_to_fit_on() -> None:
    with pytest.raises(UserError, match="no labelled dev pair was judged"):
        fit_vote([], [], BINARY)
    with pytest.raises(ValueError, match="fit needs judged dev pairs: add dev to splits"):
        JudgeSettings(fit=True, splits=("train",))


def test_judgements_are_rewritten_with_their_quality(tmp_path) -> None:
    rows = [judged(0.9, 0.2, 0.3) | {"pair_id": f"p{n}"} for n in range(3)]
    write_table(tmp_path / "judgements.parquet", pa.Table.from_pylist(rows, JUDGEMENT))
    fixed = dict.fromkeys(PAIR.names, "x") | {"attributes": None, "ratings": None}
    labels = [(YES, "test"), (NO, "test"), (YES, "dev")]
    pairs = [fixed | {"pair_id": f"p{n}", "label": label, "split": split} for n, (label, split) in enumerate(labels)]
    write_table(tmp_path / "1-pairs/pairs.parquet", pa.Table.from_pylist(pairs, PAIR))
    fit = VoteFit((1.0, 1.0, 1.0), (0.6, 0.2, 0.2))
    quality = rewrite(tmp_path / "judgements.parquet", tmp_path / "1-pairs", fit, ("a", "b", "c"), BINARY).figures()
    found = read_table(tmp_path / "judgements.parquet")
    assert found.schema.equals(JUDGEMENT) and found["vote"].to_pylist() == [YES] * 3
    assert quality["test"]["vote"]["accuracy"] == 0.5 and quality["dev"]["vote"]["accuracy"] == 1.0
