"""What `run_training` does around its workers: storage of its own, curves on boards. The workers are played here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.config import Mlflow
from cluster.training import driver as training
from cluster.training.checkpoints import trainings_with_checkpoints
from cluster.training.driver import TrainResult, run_training
from tests.helpers.one_worker import train_here
from tests.helpers.training_tasks import settings, sft_task

pytestmark = pytest.mark.usefixtures("group")


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Train in this process; return where Ray Train would have put checkpoints."""
    found: list[str] = []

    def fit(job: Any, storage: str, name: str, _: str) -> None:
        found.append(storage)
        Path(storage.removeprefix("file://"), name, "checkpoint_1").mkdir(parents=True)
        assert trainings_with_checkpoints(storage) == [name]
        train_here(job.task, Path(job.out), monkeypatch)

    monkeypatch.setattr(training, "_fit", fit)
    board = SimpleNamespace(actor=None, stop=lambda: None)
    monkeypatch.setattr(training.Board, "start", lambda *_: board)
    return found


def curve(result: TrainResult) -> list[tuple[int, float]]:
    return [(row["step"], pytest.approx(row["loss"])) for row in result.history if row["split"] == "train"]


def test_a_training_leaves_its_curves_and_no_checkpoints(places: list[str], llama_folder: Path, tmp_path: Path) -> None:
    task = sft_task(tmp_path, llama_folder, settings(epochs=1, checkpoints=(tmp_path / "storage").as_uri()))
    result = run_training(task, tmp_path / "out", "sft")
    assert len(places) == 1 and places[0].startswith(f"file://{tmp_path}/storage/broadfast-")
    assert not list((tmp_path / "storage").iterdir())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["history.jsonl", "model", "tensorboard"]
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == curve(result)


def test_a_training_is_a_run_on_mlflow(
    places: list[str], llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    own = Mlflow(tracking_uri=(tmp_path / "mlruns").as_uri())
    result = run_training(sft_task(tmp_path, llama_folder, settings(epochs=1, mlflow=own)), tmp_path / "out", "sft")
    assert places == [str(tmp_path / "out" / ".checkpoints")]
    client = MlflowClient(own.tracking_uri)
    experiment = client.get_experiment_by_name("broadfast")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "sft"
    logged = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in logged] == curve(result)
