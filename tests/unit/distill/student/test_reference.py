"""The reference of an export: its bins, its counts of a real dev split, and exports that have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from cluster.base.errors import UserError
from distill.student.model import load_tokenizer, read_student_config
from distill.student.reference import (
    REFERENCE,
    Histogram,
    histogram,
    quantities,
    read_reference,
    reference_of,
    write_reference,
)
from mpcot.schemes.scheme import load_scheme
from tests.helpers.report_run import write_export

ESCI = load_scheme("esci")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("export"), tmp_path_factory.mktemp("bert"))


def test_a_bin_begins_with_its_edge_and_the_outer_ones_are_open() -> None:
    assert histogram((1, 2, 3), np.array([-5, 0.9, 1, 1.5, 2, 3, 99])).tolist() == [2, 2, 1, 2]
    assert histogram((1, 2, 3), np.array([])).tolist() == [0, 0, 0, 0]


def test_quantities_of_a_pair() -> None:
    """In ESCI the gains are 1, 0.1, 0.01 and 0, so this pair's expected gain is 0.5 + 0.02 + 0.002."""
    values = quantities(np.array([[0.5, 0.2, 0.2, 0.1]]), np.array([8]), np.array([2]), ESCI)
    assert values["score"] == pytest.approx([0.522]) and values["label"].tolist() == [0]
    assert values["length"].tolist() == [8] and values["unknown_tokens"].tolist() == [0.25]
    assert "unknown_tokens" not in quantities(np.eye(4), np.ones(4), None, ESCI)


def test_lengths_are_cut_where_equally_many_pairs_are_between() -> None:
    values = {"score": np.zeros(100), "label": np.zeros(100), "length": np.arange(100)}
    lengths = reference_of(values, ESCI).histograms["length"]
    assert set(lengths.counts) == {10}
    alike = reference_of(values | {"length": np.full(100, 12)}, ESCI).histograms["length"]
    assert (alike.edges, alike.counts) == ((12.0,), (0, 100)), "texts of one length need no ten bins"


def test_what_is_written_is_read_again(export: Path) -> None:
    config = read_student_config(export)
    assert read_reference(export) is None, "this export was made by an earlier version"
    pairs = [{"pair_id": str(n), "query": "red case", "title": title} for n, title in enumerate(("lamp", "☃ ☃", "ß"))]
    served = {"0": [0.9, 0.1, 0, 0], "1": [0, 0, 0.1, 0.9]}
    assert write_reference(export, config, pairs, served) == 2, "nothing was predicted of the third"
    found = read_reference(export)
    assert found is not None and found.pairs == 2
    assert found.histograms["label"].counts == (1, 0, 0, 1)
    assert found.histograms["score"].counts == (1, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    unknown = load_tokenizer(export)("red case", "☃ ☃")["input_ids"].count(load_tokenizer(export).unk_token_id)
    assert unknown == 2 and found.histograms["unknown_tokens"].counts == (1, 0, 0, 0, 0, 1)
    (export / REFERENCE).write_text('{"pairs": 2}', encoding="utf-8")
    with pytest.raises(UserError, match=r"reference.json is damaged. Export again"):
        read_reference(export)


def test_without_dev_pairs_nothing_is_written(export: Path) -> None:
    (export / REFERENCE).unlink(missing_ok=True)
    assert write_reference(export, read_student_config(export), [{"pair_id": "0"}], {}) == 0
    assert not (export / REFERENCE).exists()


def test_bins_that_do_not_fit_their_edges_are_refused() -> None:
    with pytest.raises(ValidationError, match="2 counts need one edge less"):
        Histogram(edges=(1, 2), counts=(3, 4))
