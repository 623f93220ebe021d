"""Which evaluation is kept and when a training has waited enough: both follow from the history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cluster.base.errors import UserError
from cluster.config import TrainSettings
from cluster.training.best_weights import BestWeights, before_training, best, kept, mark_kept, waited_enough
from distill.config import StudentSettings
from teacher.config import DpoSettings, SftSettings

NAN = float("nan")


def settings(by: str = "loss", patience: int | None = None) -> TrainSettings:
    return TrainSettings(epochs=9, keep="best", best_by=by, patience_evaluations=patience)


def history(name: str, *values: float) -> list[dict[str, Any]]:
    """Held-out rows at steps 0, 10, 20 and so on, a training row before each but the first."""
    rows = []
    for n, value in enumerate(values):
        if n:
            rows.append({"step": 10 * n, "split": "train", name: -1.0})
        rows.append({"step": 10 * n, "split": "dev", name: value})
    return rows


@pytest.mark.parametrize(
    ("name", "values", "step"),
    [
        ("loss", (9.0, 3.0, 1.0, 2.0), 20),
        ("macro_f1", (0.1, 0.3, 0.2, 0.5), 30),
        ("accuracy", (0.1, 0.6, 0.6, 0.5), 10),
        ("margin", (0.0, -0.2, -0.1), 20),
        ("loss", (9.0, NAN, 4.0, NAN), 20),
    ],
)
def test_the_best_is_the_least_loss_or_the_highest_other_figure(
    name: str, values: tuple[float, ...], step: int
) -> None:
    """Step 0 is never kept, of equals the earliest is, and what is no number is not better."""
    rows = history(name, *values)
    found = best(rows, settings(name))
    assert found is not None and found["step"] == step
    mark_kept(rows, settings(name))
    assert [row["step"] for row in rows if row.get("kept")] == [step] and kept(rows)["split"] == "dev"
    assert before_training(rows)["step"] == 0


def test_before_an_evaluation_there_is_no_best() -> None:
    assert best(history("loss", 1.0), settings()) is None
    assert not waited_enough(history("loss", 1.0), settings(patience=1))


def test_the_last_evaluation_is_kept_unless_the_best_is_asked_for() -> None:
    rows = history("loss", 9.0, 3.0, 5.0)
    mark_kept(rows, TrainSettings())
    assert kept(rows)["step"] == 20
    mark_kept([], TrainSettings())
    assert kept([]) == before_training([]) == {}


def test_patience_counts_evaluations_since_the_best() -> None:
    rows = history("loss", 9.0, 3.0, 1.0, 2.0, 2.0)
    waited = [waited_enough(rows[: 2 * n + 1], settings(patience=2)) for n in range(5)]
    assert waited == [False, False, False, False, True]
    assert not waited_enough(rows, settings(patience=3)) and not waited_enough(rows, settings())
    assert waited_enough(history("loss", 9.0, NAN, NAN), settings(patience=2))


def test_no_number_at_all_is_said() -> None:
    with pytest.raises(UserError, match=r"best_by 'loss' was not a number in any of 2 evaluations.*learning_rate"):
        mark_kept(history("loss", 9.0, NAN, NAN), settings())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"keep": "best"}, "keep = 'best' needs best_by"),
        ({"best_by": "loss"}, "best_by has no effect with keep = 'last'"),
        ({"patience_evaluations": 1}, "patience_evaluations has no effect with keep = 'last'"),
        (
            {"keep": "best", "best_by": "loss", "patience_evaluations": 3},
            "patience_evaluations 3 never stops a training of 3 evaluations",
        ),
        (
            {"keep": "best", "best_by": "loss", "patience_evaluations": 2, "evaluate_every_epochs": 2},
            "patience_evaluations 2 never stops a training of 2 evaluations",
        ),
        ({"keep": "best", "best_by": "bleu"}, "Input should be 'loss', 'macro_f1', 'accuracy', 'margin' or 'ndcg'"),
    ],
)
def test_settings_without_effect_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        TrainSettings(epochs=3, **given)


@pytest.mark.parametrize(
    ("kind", "refused", "known"),
    [
        (SftSettings, "margin", "only loss"),
        (DpoSettings, "macro_f1", "only loss, margin, accuracy"),
        (StudentSettings, "margin", "only loss, accuracy, macro_f1"),
    ],
)
def test_a_figure_that_the_task_does_not_measure_is_refused(kind: Any, refused: str, known: str) -> None:
    with pytest.raises(ValidationError, match=rf"train.best_by: '{refused}' is not measured here, {known}"):
        kind(train=settings(refused))
    assert kind(train=settings("loss")).train.best_by == "loss"


def test_the_best_weights_go_into_checkpoints_and_come_back(tmp_path: Path) -> None:
    weights = BestWeights(tmp_path / "run")
    weights.copy_to(tmp_path)
    assert not list(tmp_path.iterdir()), "there are none yet"
    first = {"a": torch.arange(6.0).reshape(2, 3).T}
    weights.put(first)
    (tmp_path / "checkpoint").mkdir()
    weights.copy_to(tmp_path / "checkpoint")
    weights.put({"a": torch.zeros(3, 2)})
    assert weights.get()["a"].sum() == 0
    weights.copy_from(tmp_path / "checkpoint")
    assert torch.equal(weights.get()["a"], first["a"])
