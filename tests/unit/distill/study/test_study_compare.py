"""What a study says of its runs: differences and intervals by hand, sentences, pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.config import StudentSettings
from distill.metrics import bootstrap_differences, interval
from distill.study.arms import StudyRow
from distill.study.compare import compare, over_seeds, sentence
from distill.study.config import StudyConfig
from distill.study.data import StudyData, StudyPairs
from distill.study.records import Record
from distill.study.study import FinishedRow
from distill.study.study_page import markdown, page, write_study
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.config import LabelSettings

ESCI, BINARY = load_scheme("esci"), load_scheme("binary")
SCRIPT = "<script>alert(1)</script>"
DEV = {"accuracy": 0.5, "macro_f1": 0.5, "ce": 1.0}


def record(predicted: str, seed: int, fold: int, dev: float = 0.5) -> Record:
    test = dict.fromkeys(("auc", "ndcg_at_10"), 0.5) | {"calibration_error": None}
    kept = {"predicted": predicted, "seed": seed, "fold": fold, "dev": DEV | {"macro_f1": dev}, "test": test}
    return kept | {"seconds": 36.0, "train_pairs": 3}


def row(name: str, role: Any, answers: list[tuple[str, str]], dev: float = 0.5, title: str = "") -> FinishedRow:
    """A row whose answers to folds 0 and 1 are given by seed."""
    finals = [record(p, seed, fold, dev) for seed, folds in enumerate(answers) for fold, p in enumerate(folds)]
    own = StudyRow(name=name, title=title or name.upper(), role=role)
    return FinishedRow(own, StudentSettings(), [record("", 0, 0)], finals)


def pairs(gold: str, folds: str) -> StudyPairs:
    """Four pairs of a query each; the vote is right, and the one perspective always says 1."""
    lengths = ("long", "long", "short", None)
    tested = [
        {"id": str(i), "query": i, "gold": g, "vote": g, "fold": int(fold), "verdicts": ["1"], "segments": [length]}
        for i, (g, fold, length) in enumerate(zip(gold, folds, lengths, strict=True))
    ]
    return StudyPairs(
        **{"fingerprint": "f", "model": "m", "scheme": BINARY, "perspectives": ("intent",), "folds": 2, "seed": 13},
        **{"dev_pairs": 2, "segments": ("query length",), "tested": tested},
    )


@pytest.fixture
def report() -> dict[str, Any]:
    """Two data sets of four pairs; folds take turns, so that their order matters."""
    config = StudyConfig(
        data=[{"name": n, "run": n} for n in ("one", "two")], bootstrap_resamples=50, seeds=(0, 1), folds=2
    )
    data = [StudyData(name, None, LabelSettings(scheme="binary"), pairs("1010", "0101")) for name in ("one", "two")]
    right = ("1 1", "0 0")
    base = row("ce_only", "baseline", [("1 1", "1 1"), ("1 1", "0 1")])
    best = row("lrkd", "candidate", [right, right], dev=0.6, title=SCRIPT)
    poor = row("gat", "candidate", [("0 0", "1 1")] * 2, dev=0.4)
    shuffled = row("shuffled", "shuffled", [("0 1", "0 0"), ("1 1", "0 0")])
    weaker = row("ce_only", "baseline", [right, ("1 1", "0 1")])
    rows = {"one": [base, best, poor, shuffled], "two": [weaker, best, poor, shuffled]}
    return compare(config, data, rows)


def test_segments_by_hand(report: dict[str, Any]) -> None:
    long, short = report["data"][0]["segments"]
    assert (long["segment"], long["value"], long["pairs"], long["queries"]) == ("query length", "long", 2, 2)
    assert (short["value"], short["pairs"]) == ("short", 1), "a pair without a value is in none"
    # Gold 1 and 0; the first seed of CE only says 1 to both, the second 1 and 0.
    assert long["teacher"] == {"intent": 0.5, "vote": 1.0}
    assert set(long["students"]) == {"ce_only", "lrkd", "shuffled"}, "others than the best row and its references"
    assert long["students"]["ce_only"]["accuracy"] == 0.75 and long["students"]["lrkd"]["accuracy"] == 1.0
    assert long["over"]["accuracy"]["difference"] == pytest.approx(0.25)
    assert "| query length: long | 2, 2 | 0.500 | 1.000 |" in markdown(report)
    assert "Segments of one" in page(report)


def test_differences_of_runs_by_hand() -> None:
    # Accuracies: first 1/4 and 3/4, second 3/4 and 1; the mean difference is 3/8.
    gold = list("EEEE")
    first, second = [list("ESSS"), list("EEES")], [list("EEES"), list("EEEE")]
    found, drawn = bootstrap_differences(gold, first, second, list("abcd"), ESCI, "accuracy", 400)
    assert found == pytest.approx(3 / 8)
    # Pair a gains nothing, the others are gained in one of two runs: a draw's mean is a multiple of 1/8, at most 1/2.
    assert set(np.round(drawn * 8)) <= set(range(5)) and drawn.max() == pytest.approx(0.5)
    assert drawn.mean() == pytest.approx(3 / 8, abs=0.02)


def test_a_single_query_is_drawn_again_and_again() -> None:
    found = bootstrap_differences(list("EE"), [list("ES")], [list("EE")], ["q", "q"], ESCI, "accuracy", 20)
    assert found[0] == 0.5 and set(found[1]) == {0.5}
    assert interval(*found) == {"difference": 0.5, "low": 0.5, "high": 0.5}


def test_an_interval_by_hand() -> None:
    # 101 values 0 to 100: the 2.5 % and 97.5 % quantiles are 2.5 and 97.5.
    assert interval(7.0, np.arange(101.0)) == pytest.approx({"difference": 7.0, "low": 2.5, "high": 97.5})
    assert interval(7.0, np.arange(101.0), confidence=0.8)["low"] == pytest.approx(10)


def test_figures_over_seeds_by_hand() -> None:
    assert over_seeds([0.5, 0.7]) == {
        "mean": pytest.approx(0.6),
        "sd": pytest.approx(0.1414, abs=1e-4),
        "seeds": [0.5, 0.7],
    }
    assert over_seeds([0.5])["sd"] is None


def test_folds_are_put_together_by_seed(report: dict[str, Any]) -> None:
    base, best, poor, shuffled = report["data"][0]["rows"]
    assert base["accuracy"]["seeds"] == [0.5, 0.75] and best["accuracy"]["seeds"] == [1, 1]
    assert poor["accuracy"]["mean"] == 0 and shuffled["accuracy"]["seeds"] == [0.75, 1]
    assert report["data"][0]["best"] == "lrkd" and [r["best"] for r in (base, best, poor)] == [False, True, False]
    assert report["data"][0]["hours"] == pytest.approx(4 * 5 * 0.01)


def test_figures_by_hand_and_pooled_over_data_sets(report: dict[str, Any]) -> None:
    figures = report["figures"]
    assert figures["accuracy_gain_points_one"] == pytest.approx(37.5)
    assert figures["accuracy_gain_points_two"] == pytest.approx(12.5)
    assert figures["accuracy_gain_points"] == pytest.approx(25)
    assert figures["gain_over_shuffled_points"] == pytest.approx(100 * (1 - (0.7333333 + 1) / 2), abs=0.01)
    for end in ("", "_one", "_two"):
        assert figures[f"macro_f1_gain_low{end}"] <= figures[f"macro_f1_gain_points{end}"]
        assert f"gain_over_shuffled_low{end}" in figures
    assert set(report["pooled"]) == {"ce_only", "shuffled"}


def test_only_the_best_row_is_compared_with_its_controls(report: dict[str, Any]) -> None:
    over = {r["name"]: set(r["over"]) for r in report["data"][0]["rows"]}
    assert over == {"ce_only": set(), "lrkd": {"ce_only", "shuffled"}, "gat": {"ce_only"}, "shuffled": {"ce_only"}}


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0.01, 0.05, "A beats B in"),
        (-0.05, -0.01, "A does worse than B in"),
        (-0.1, 0.2, "does not tell A and B apart in"),
    ],
)
def test_a_sentence_follows_the_interval(low: float, high: float, says: str) -> None:
    said = sentence("A", "B", "macro_f1", {"difference": (low + high) / 2, "low": low, "high": high})
    assert says in said and f"95 % interval {100 * low:+.1f}, {100 * high:+.1f}" in said


def test_the_pages_hold_the_table_and_escape_what_is_not_ours(report: dict[str, Any], tmp_path: Path) -> None:
    text, html = markdown(report), page(report)
    assert "| CE_ONLY | 0.625 ± 0.177 |" in text and "(best on dev)" in text and "## Pooled" in text
    assert SCRIPT not in html and "&lt;script&gt;" in html and html.count("<svg") == 2
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    written = write_study(report, tmp_path / "out")
    assert written.name == "study.html"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["study.html", "study.json", "study.md"]
