"""The curves of a training, for TensorBoard's event files and for MLflow where the config names a server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.base.errors import UserError
from cluster.base.progress import console
from cluster.config import Mlflow, TrainSettings

Row = dict[str, Any]
NOT_CURVES = ("epoch", "seconds")
MOST_AT_ONCE = 1000  # metrics that MLflow accepts in one request


def curves(history: Sequence[Row]) -> Iterator[tuple[str, float, int]]:
    """Yield name, value and step of every logged figure, such as `train/loss` and `dev/macro_f1`."""
    for row in history:
        for name, value in row.items():
            if isinstance(value, float) and name not in NOT_CURVES:
                yield f"{row['split']}/{name}", value, row["step"]


def write_tensorboard(history: Sequence[Row], folder: Path) -> None:
    """Write one event file with all curves."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name, value, step in curves(history):
            writer.add_scalar(name, value, step)


class MlflowBoard:
    """One run on an MLflow server, which is written when a training has ended.

    Raises:
        UserError: MLflow is not installed, or the server does not answer.
    """

    def __init__(self, settings: Mlflow) -> None:
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ModuleNotFoundError as error:
            raise UserError(
                "train.mlflow needs MLflow's client: pip install 'broadfast[mlflow]', or leave train.mlflow out."
            ) from error
        self.settings, self.failure = settings, MlflowException
        try:
            self.client = MlflowClient(settings.tracking_uri)
            found = self.client.get_experiment_by_name(settings.experiment)
            self.experiment = found.experiment_id if found else self.client.create_experiment(settings.experiment)
        except MlflowException as error:
            raise UserError(f"train.mlflow.tracking_uri {settings.tracking_uri!r}: {error}") from error

    def write(self, history: Sequence[Row], train: TrainSettings, label: str, out: Path) -> None:
        """Write settings and curves as a finished run. A failure is only a warning, because the training is done."""
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value, step in curves(history)]
        params = [Param(name, str(value)) for name, value in train.model_dump(exclude={"mlflow"}).items()]
        try:
            run = self.client.create_run(self.experiment, run_name=label, tags={"folder": str(out)}).info.run_id
            self.client.log_batch(run, params=params)
            for start in range(0, len(metrics), MOST_AT_ONCE):
                self.client.log_batch(run, metrics=metrics[start : start + MOST_AT_ONCE])
            self.client.set_terminated(run)
        except self.failure as error:
            console().print(f"  warning: {label}: the curves could not be sent to MLflow: {error}", style="yellow")
