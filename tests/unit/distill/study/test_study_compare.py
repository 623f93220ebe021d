"""What a study says of its runs: gains and comparisons by hand, sentences, pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.config import StudentSettings
from distill.study.arms import StudyRow
from distill.study.compare import compare, comparisons, over_seeds, references
from distill.study.conclusions import sentence
from distill.study.config import Comparison, StudyConfig
from distill.study.data import StudyData, StudyPairs
from distill.study.probabilities import packed
from distill.study.records import Record
from distill.study.study import FinishedRow
from distill.study.study_page import markdown, page, write_study
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.config import LabelSettings

BINARY = load_scheme("binary")
SCRIPT = "<script>alert(1)</script>"
SURE = 0.98


def record(answers: str, seed: int, fold: int, dev: dict[str, float]) -> Record:
    probabilities = np.eye(2)[[BINARY.index(code) for code in answers.split()]] * (2 * SURE - 1) + 1 - SURE
    kept = {"probabilities": packed(probabilities), "seed": seed, "fold": fold}
    return kept | {"dev": {"log_loss": 0.5} | dev, "seconds": 36.0, "train_pairs": 3}


def row(name: str, answers: list[tuple[str, str]], title: str = "", **fields: Any) -> FinishedRow:
    """A row whose answers to folds 0 and 1 are given by seed; `dev` holds its figures there."""
    dev = fields.pop("dev", {})
    finals = [record(p, seed, fold, dev) for seed, folds in enumerate(answers) for fold, p in enumerate(folds)]
    own = StudyRow(name=name, title=title or name.upper(), **fields)
    return FinishedRow(own, StudentSettings(target_pairs="own"), [record("1 1", 0, 0, dev)], finals)


def pairs(gold: str, folds: str, hidden: float = 0) -> StudyPairs:
    """Four pairs of a query each; the vote is right, and the one perspective always says 1."""
    lengths = ("long", "long", "short", None)
    tested = [
        {"id": str(i), "query": i, "gold": g, "vote": g, "fold": int(fold), "verdicts": ["1"], "segments": [length]}
        | {"seen": i == 0}
        for i, (g, fold, length) in enumerate(zip(gold, folds, lengths, strict=True))
    ]
    return StudyPairs(
        **{"fingerprint": "f", "model": "m", "scheme": BINARY, "perspectives": ("intent",), "folds": 2, "seed": 13},
        **{"dev_pairs": 2, "segments": ("query length",), "tested": tested, "hidden_labels": hidden},
    )


RIGHT = ("1 1", "0 0")
KL = row("kl", [("1 1", "0 1")] * 2, role="soft_labels")
SKILLED = {"alignment_skill": 0.3}


def rows_of(dev: dict[str, float], base: list[tuple[str, str]]) -> list[FinishedRow]:
    """Labels only, KL, an LRKD row that is always right, one that is always wrong, and two controls."""
    changes = {"control": "same_verdicts"}
    return [
        row("labels", base, role="baseline"),
        KL,
        row("lrkd", [RIGHT, RIGHT], title=SCRIPT, role="candidate", twin="kl", dev=dev | {"log_loss": 0.4}),
        row("poor", [("0 0", "1 1")] * 2, role="candidate", twin="labels"),
        row("alike", [("0 1", "0 0"), ("1 1", "0 0")], role="control", of="lrkd", changes=changes),
        row("shuffled", [("1 1", "1 1")] * 2, role="control", of="lrkd"),
    ]


def report_of(dev: dict[str, float], **changes: Any) -> dict[str, Any]:
    """Two data sets of four pairs; folds take turns, so that their order matters."""
    given = {"data": [{"name": n, "run": n} for n in ("one", "two")], "bootstrap_resamples": 50, "seeds": (0, 1)}
    config = StudyConfig(**(given | {"folds": 2} | changes))
    data = [StudyData(name, None, LabelSettings(scheme="binary"), pairs("1010", "0101")) for name in ("one", "two")]
    first, second = [("1 1", "1 1"), ("1 1", "0 1")], [RIGHT, ("1 1", "0 1")]
    return compare(config, data, {"one": rows_of(dev, first), "two": rows_of(dev, second)})


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return report_of(SKILLED, primary={"row": "lrkd", "against": "labels", "metric": "accuracy"})


def test_segments_by_hand(report: dict[str, Any]) -> None:
    long, short = report["data"][0]["segments"]
    assert (long["segment"], long["value"], long["pairs"], long["queries"]) == ("query length", "long", 2, 2)
    assert (short["value"], short["pairs"]) == ("short", 1), "a pair without a value is in none"
    # Gold 1 and 0; the first seed of labels only says 1 to both, the second 1 and 0.
    assert long["teacher"] == {"intent": 0.5, "vote": 1.0}
    assert set(long["students"]) == {"labels", "kl", "lrkd", "alike", "shuffled"}, "others than its references"
    assert long["students"]["labels"]["accuracy"] == 0.75 and long["students"]["lrkd"]["accuracy"] == 1.0
    assert long["over"]["labels"]["accuracy"]["difference"] == pytest.approx(0.25)
    assert short["students"]["lrkd"]["auc"] is None and short["over"]["labels"]["auc"] is None
    assert "| query length: long | 2, 2 | 0.500 | 1.000 |" in markdown(report)
    assert "Segments of one" in page(report)


def test_figures_over_seeds_by_hand() -> None:
    assert over_seeds(np.array([0.5, 0.7])) == {
        "mean": pytest.approx(0.6),
        "sd": pytest.approx(0.1414, abs=1e-4),
        "seeds": [0.5, 0.7],
    }
    assert over_seeds(np.array([0.5]))["sd"] is None
    assert over_seeds(np.array([0.5, np.nan]))["mean"] is None


def test_rows_side_by_side(report: dict[str, Any]) -> None:
    base, _, best, poor, *_ = report["data"][0]["rows"]
    assert base["accuracy"]["seeds"] == [0.5, 0.75] and best["accuracy"]["seeds"] == [1, 1]
    assert poor["accuracy"]["mean"] == 0 and best["log_loss"]["mean"] == pytest.approx(-np.log(SURE), abs=1e-3)
    assert report["data"][0]["best"] == "lrkd" and [r["best"] for r in (base, best, poor)] == [False, True, False]
    assert report["data"][0]["hours"] == pytest.approx(6 * 5 * 0.01)
    assert best["ndcg_at_10"] is None and best["ndcg_queries"] == 0, "no query has two products"
    assert report["data"][0]["seen_pairs"] == 1 and best["alignment_skill"] == pytest.approx(0.3)


def test_who_is_compared_with_whom() -> None:
    rows = [own.row for own in rows_of({}, [RIGHT, RIGHT])]
    found = comparisons(rows, None)
    assert [pair for pair in found if pair[0] == "lrkd"] == [
        *(("lrkd", "labels"), ("lrkd", "kl"), ("lrkd", "alike"), ("lrkd", "shuffled"))
    ]
    assert [pair for pair in found if pair[0] in ("labels", "kl")] == [("kl", "labels")]
    assert len(found) == len(set(found))
    assert comparisons(rows, Comparison(row="lrkd", against="poor"))[0] == ("lrkd", "poor")
    means = row("means", RIGHT, role="candidate", of="lrkd").row
    held = [against for own, against in comparisons([*rows, means], None) if own == "means"]
    assert held == ["labels", "kl", "alike", "shuffled"], "the controls of the row that it starts from"
    kinds = references(rows[2], rows)
    against = {kind: pair[1] for kind, pair in kinds.items()}
    assert against == {"baseline": "labels", "kl": "kl", "twin": "kl", "same_verdicts": "alike", "shuffled": "shuffled"}
    assert {pair[0] for pair in kinds.values()} == {"lrkd"}
    other = references(rows[3], rows)
    assert other["twin"] == ("poor", "labels") and other["same_verdicts"] == ("lrkd", "alike")


def test_figures_by_hand_and_pooled_over_data_sets(report: dict[str, Any]) -> None:
    figures = report["figures"]
    assert figures["accuracy_gain_points_one"] == pytest.approx(37.5)
    assert figures["accuracy_gain_points_two"] == pytest.approx(12.5)
    assert figures["accuracy_gain_points"] == pytest.approx(25)
    assert figures["gain_over_kl_points"] == figures["gain_over_twin_points"] == pytest.approx(100 * (1 - 11 / 15))
    # One of eight answers of the control is wrong.
    assert figures["gain_over_same_verdict_nats"] == pytest.approx(np.log(SURE / (1 - SURE)) / 8, abs=1e-3)
    for end in ("", "_one", "_two"):
        assert figures[f"macro_f1_gain_low{end}"] <= figures[f"macro_f1_gain_points{end}"]
    assert set(report["pooled"]) == {"baseline", "kl", "twin", "same_verdicts", "shuffled"}


def test_all_tests_but_the_primary_one_are_corrected(report: dict[str, Any]) -> None:
    over = {(r["name"], a): found for r in report["data"][0]["rows"] for a, found in r["over"].items()}
    first = over["lrkd", "labels"]["accuracy"]
    assert first["primary"] and first["corrected"] == first["p"]
    rest = [one for found in over.values() for one in found.values() if one and not one["primary"]]
    assert min(one["corrected"] for one in rest) == pytest.approx(min(1, len(rest) * min(one["p"] for one in rest)))
    pooled = [one for over in report["pooled"].values() for one in over.values() if one]
    least = min(one["p"] for one in pooled)
    assert min(one["corrected"] for one in pooled) == pytest.approx(min(1, len(pooled) * least))
    first, second = report["conclusions"][:2]
    assert first.startswith("one, primary test: ") and second.startswith("two, primary test: ")
    assert SCRIPT in first and "in accuracy: +37.5 points" in first


def test_a_ceiling_is_shown_and_tested_against_nothing() -> None:
    config = StudyConfig(data=[{"name": "one", "run": "one"}], bootstrap_resamples=50, seeds=(0, 1), folds=2)
    data = [StudyData("one", None, LabelSettings(scheme="binary"), pairs("1010", "0101"))]
    rows = rows_of(SKILLED, [("1 1", "1 1"), ("1 1", "0 1")])
    top = row("top", [RIGHT, RIGHT], role="ceiling", reading={"by": "student"})
    without, found = compare(config, data, {"one": rows}), compare(config, data, {"one": [*rows, top]})
    *others, last = found["data"][0]["rows"]
    assert others == without["data"][0]["rows"], "its tests would make the others stricter"
    assert found["conclusions"] == without["conclusions"]
    assert last["title"] == "TOP (cannot be served)" and last["over"]["labels"]["accuracy"]["difference"] > 0
    assert all("corrected" not in one for over in last["over"].values() for one in over.values() if one)
    for text in (markdown(found), page(found)):
        assert "TOP (cannot be served)" in text and "A ceiling reads" in text
    assert "A ceiling reads" not in markdown(without)


def test_nothing_is_said_of_rationales_that_were_not_learnt(report: dict[str, Any]) -> None:
    about = f"{SCRIPT} (best on dev) and ALIKE"
    assert any(about in said or "ALIKE" in said for said in report["conclusions"])
    for dev, skill in (({"alignment_skill": 0.05}, "0.050 on dev"), ({}, "not known")):
        said = report_of(dev)["conclusions"]
        assert not [one for one in said if "ALIKE" in one or "control" in one or "lambda 0" in one]
        assert sum(f"alignment skill of {SCRIPT} (best on dev) is {skill}" in one for one in said) == 2


def test_a_learning_curve_over_the_shares_of_one_run() -> None:
    config = StudyConfig(
        data=[{"name": "all", "run": "r"}, {"name": "half", "run": "r", "hidden_labels": 0.5}],
        bootstrap_resamples=20,
        seeds=(0, 1),
        folds=2,
    )
    data = [
        StudyData(n, None, LabelSettings(), pairs("1010", "0101", hidden)) for n, hidden in (("all", 0), ("half", 0.5))
    ]
    rows = rows_of(SKILLED, [RIGHT, RIGHT])
    found = compare(config, data, {"all": rows, "half": rows[:4]})
    assert [(line["data"], line["labels"]) for line in found["curve"][::4]] == [("half", 0.5), ("all", 1)]
    assert [line["row"] for line in found["curve"][:4]] == ["LABELS", "KL", SCRIPT, "POOR"]
    assert [part["name"] for part in found["data"]] == ["all"] and found["pooled"] == {}
    assert not [name for name in found["figures"] if "half" in name] and "half" not in " ".join(found["conclusions"])
    halves = config.model_copy(update={"data": config.data[1:]})
    assert [part["name"] for part in compare(halves, data[1:], {"half": rows[:4]})["data"]] == ["half"]
    assert "| half | 50 % | 100 % | 3 | LABELS |" in markdown(found) and "Learning curve" in page(found)


@pytest.mark.parametrize(
    ("low", "high", "corrected", "equal", "says"),
    [
        (0.01, 0.05, 0.01, False, "A beats B in"),
        (0.01, 0.05, 0.2, False, "A may be ahead of B in"),
        (-0.05, -0.01, 0.01, False, "A does worse than B in"),
        (-0.05, -0.01, 0.2, False, "A may be behind B in"),
        (-0.1, 0.2, 0.5, False, "does not tell A and B apart in"),
        (-0.002, 0.003, 0.5, True, "A and B are equal within the margin in"),
    ],
)
def test_a_sentence_follows_the_interval(low: float, high: float, corrected: float, equal: bool, says: str) -> None:
    found = {"difference": (low + high) / 2, "low": low, "high": high, "p": corrected, "corrected": corrected}
    said = sentence("A", "B", "macro_f1", found | {"equal": equal, "bound": 0.06})
    assert (
        says in said and f"points ({100 * low:+.1f} to {100 * high:+.1f}), they differ by less than 6.0 points" in said
    )
    assert "nats (" in sentence("A", "B", "log_loss", found | {"equal": equal, "bound": 0.06})


def test_the_pages_hold_the_table_and_escape_what_is_not_ours(report: dict[str, Any], tmp_path: Path) -> None:
    text, html = markdown(report), page(report)
    assert "(best on dev)" in text and "## Pooled" in text
    assert re.search(r"^\| LABELS \| 2 \| .*0\.625 ± 0\.177 \|", text, re.MULTILINE)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    assert SCRIPT not in html and "&lt;script&gt;" in html and html.count("<svg") == 2
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    written = write_study(report, tmp_path / "out")
    assert written.name == "study.html"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["study.html", "study.json", "study.md"]
