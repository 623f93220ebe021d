"""A student in Python: the best product first, what it says of each, and no Ray behind it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.base.errors import UserError
from serve import Student
from serve.scoring.scores import Scores
from tests.helpers.local_service import explaining_export
from tests.helpers.report_run import NAMES, write_export

TITLES = ["blue lamp", "red phone case", "shoe", "red phone"]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("export"), tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def student(export: Path) -> Student:
    return Student.load(export, threads=1, precision="fp32")


def test_products_are_ranked_by_the_scores_of_the_service(student: Student) -> None:
    ranked = student.rank("red phone case", TITLES)
    assert sorted(found.index for found in ranked) == [0, 1, 2, 3]
    assert [found.score for found in ranked] == sorted((found.score for found in ranked), reverse=True)
    for found in ranked:
        assert found.product == TITLES[found.index]
        assert set(found.verdicts) == set(NAMES) and found.label == max(
            found.probabilities, key=found.probabilities.get
        )
        (alone,) = student.rank("red phone case", [TITLES[found.index]])
        assert alone.score == pytest.approx(found.score, abs=1e-5)


def test_products_may_be_objects_and_come_back_as_they_are(student: Student) -> None:
    given = [{"id": 7, "title": "shoe", "brand": "X"}, {"title": "red phone"}]
    ranked = student.rank("red phone", given)
    assert {found.result.id: found.product for found in ranked} == {"7": given[0], "1": given[1]}
    assert student.rank("red phone", []) == []


def test_equal_scores_keep_their_order(student: Student) -> None:
    assert [found.index for found in student.rank("mug", ["shoe"] * 5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("query", "product", "said"),
    [(" ", "shoe", "query"), ("shoe", "\u200b", "title"), ("shoe", {"title": "x", "price": 3}, "price")],
)
def test_what_is_wrong_is_named(student: Student, query: str, product: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        student.rank(query, [product])  # type: ignore[list-item]


def test_explanations_come_from_the_index(student: Student, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no index"):
        student.rank("shoe", ["shoe"], explain=True)
    (found,) = Student.load(explaining_export(tmp_path), threads=1).rank("red phone case", ["lamp"], explain=True)
    assert found.result.explanations and found.result.explanations[0].rationale


def test_scores_that_are_no_numbers_rank_nothing(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = student.scorer.score

    def broken(pairs: list[dict[str, Any]]) -> Scores:
        scores = sound(pairs)
        return replace(scores, probabilities=scores.probabilities * np.nan)

    monkeypatch.setattr(student.scorer, "score", broken)
    with pytest.raises(ArithmeticError, match="are not numbers"):
        student.rank("shoe", ["red shoe"])


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a student's folder"):
        Student.load(tmp_path)


def test_ray_is_not_loaded(export: Path) -> None:
    code = f"""
import sys
import serve
assert "torch" not in sys.modules
from serve import Student
Student.load({str(export)!r}).rank("red", ["red shoe"])
assert not [name for name in sys.modules if name == "ray" or name.startswith("ray.")], "Ray was loaded"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
