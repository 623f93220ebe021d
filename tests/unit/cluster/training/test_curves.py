"""What a board shows is what the history holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.base.errors import UserError
from cluster.base.stage_folder import digest, result_settings
from cluster.config import Mlflow, TrainSettings
from cluster.training.curves import MlflowBoard, write_tensorboard

HISTORY: list[dict[str, Any]] = [
    {"step": 0, "epoch": 0.0, "split": "dev", "loss": 2.5, "macro_f1": 0.25, "seconds": 1.0},
    {"step": 1, "epoch": 0.5, "split": "train", "loss": 2.0, "learning_rate": 0.5, "units": 8.0, "seconds": 2.0},
    {"step": 2, "epoch": 1.0, "split": "train", "loss": 1.5, "learning_rate": 0.25, "units": 8.0, "seconds": 3.0},
    {"step": 2, "epoch": 1.0, "split": "dev", "loss": 1.75, "macro_f1": 0.5, "seconds": 4.0, "kept": True},
]
CURVES = {
    "dev/loss": [(0, 2.5), (2, 1.75)],
    "dev/macro_f1": [(0, 0.25), (2, 0.5)],
    "train/loss": [(1, 2.0), (2, 1.5)],
    "train/learning_rate": [(1, 0.5), (2, 0.25)],
    "train/units": [(1, 8.0), (2, 8.0)],
}


def test_tensorboard_reads_the_curves_back(tmp_path: Path) -> None:
    write_tensorboard(HISTORY, tmp_path)
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    names = found.Tags()["scalars"]
    assert {name: [(event.step, event.value) for event in found.Scalars(name)] for name in names} == CURVES


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    """Files in place of a server: MLflow's own store, which it offers without one."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return Mlflow(tracking_uri=f"file://{tmp_path / 'mlruns'}", experiment="shop")


def test_mlflow_reads_the_curves_back(store: Mlflow, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    train = TrainSettings(mlflow=store, epochs=7)
    for label in ("sft", "dpo"):
        MlflowBoard(store).write(HISTORY, train, label, tmp_path)
    client = MlflowClient(store.tracking_uri)
    experiment = client.get_experiment_by_name("shop")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"sft", "dpo"}
    for run in runs:
        logged = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        assert {name: [(m.step, m.value) for m in metrics] for name, metrics in logged.items()} == CURVES
        assert run.info.status == "FINISHED" and run.data.tags["folder"] == str(tmp_path)
        assert run.data.params["epochs"] == "7" and "mlflow" not in run.data.params


def test_what_mlflow_refuses_is_a_warning_once_the_training_is_done(
    store: Mlflow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = MlflowBoard(store)
    board.client.delete_experiment(board.experiment)
    board.write(HISTORY, TrainSettings(mlflow=store), "sft", tmp_path)
    assert "warning: sft: the curves could not be sent to MLflow" in capsys.readouterr().out


def test_a_server_that_cannot_be_reached_ends_before_training() -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(UserError, match=r"train.mlflow.tracking_uri 'nowhere://'"):
        MlflowBoard(Mlflow(tracking_uri="nowhere://"))


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match=r"pip install 'broadfast\[mlflow\]'"):
        MlflowBoard(Mlflow(tracking_uri="http://localhost"))


def test_boards_and_storage_change_no_fingerprint() -> None:
    plain = digest(result_settings(TrainSettings()))
    watched = TrainSettings(mlflow=Mlflow(tracking_uri="http://x"), checkpoints="s3://bucket/folder")
    assert digest(result_settings(watched)) == plain
    with pytest.raises(ValidationError, match="checkpoints"):
        TrainSettings(checkpoints="bucket/folder")
