"""A training of the tiny Llama on made-up answers, and one whose worker is killed on the way."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from cluster.config import TrainSettings, Workers
from cluster.training.arrow_rows import write_rows
from cluster.training.checkpoints import storage_place
from cluster.training.driver import CHECKPOINTS
from teacher.config import Full, Lora, Tuning
from teacher.examples import EXAMPLE
from teacher.sft import SftTask, to_sequences

NOTED = "checkpoint_manager_snapshot.json"
PATIENCE_S = 300.0
SENTENCE = "the shopper wants a drill and this case only holds one so it is not what they asked for"


def examples(count: int, start: int = 0) -> pa.Table:
    """Rows of unlike length whose verdict follows from the prompt."""
    rows = []
    for n in range(start, start + count):
        said = SENTENCE[: 20 + 5 * (n % 11)]
        row = dict.fromkeys(EXAMPLE.names, "x") | {"pair_id": f"p{n}", "query_id": f"q{n}", "weight": 1.0}
        rows.append(row | {"prompt": f"Query: drill {n % 4}\n", "answer": f"{said}.\nVerdict: {'ESCI'[n % 4]}"})
    return pa.Table.from_pylist(rows, EXAMPLE)


def settings(zero: int = 0, workers: int = 1, **changes: Any) -> TrainSettings:
    """A dozen steps in fp32."""
    given = {"epochs": 3, "learning_rate": 1e-2, "global_batch": 8, "micro_batch": 4, "checkpoint_every_steps": 6}
    count = Workers(count=workers)
    return TrainSettings(**{**given, "precision": "fp32", "zero_stage": zero, "workers": count, **changes})


def sft_task(folder: Path, model: Path, train: TrainSettings, tuning: Tuning | None = None) -> SftTask:
    """A supervised training whose rows lie in `folder`."""
    write_rows(folder / "train.arrow", to_sequences(examples(30), 1))
    write_rows(folder / "dev.arrow", to_sequences(examples(9, start=1000), 1))
    return SftTask(train, 5, str(folder), str(model), tuning or Full(), 128, 1.0)


def lora_with_dropout() -> Lora:
    return Lora(rank=4, alpha=8, dropout=0.1)


@dataclass
class Killed(SftTask):
    """Its worker is killed in the forward passes `at` of workers of `rank`; `passes` has a line of each of them."""

    at: tuple[int, ...]
    rank: int = 0

    def loss(self, model: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, float]]:
        if int(os.environ["RANK"]) != self.rank:
            return super().loss(model, batch)
        passes = Path(self.folder) / "passes"
        with passes.open("a") as file:
            file.write(f"{os.getpid()}\n")
        lines = passes.read_text().splitlines()
        if len(lines) in self.at:
            self._wait_for_the_driver()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, batch)

    def _wait_for_the_driver(self) -> None:
        """Wait until Ray's controller has noted the checkpoint that was reported last."""
        place = storage_place(self.settings.checkpoints, Path(self.folder) / "out" / CHECKPOINTS)
        filesystem, folder = pafs.FileSystem.from_uri(place)
        everything = pafs.FileSelector(folder, recursive=True)
        ends = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends:
            with suppress(OSError):  # files come and go meanwhile
                paths = [info.path for info in filesystem.get_file_info(everything) if info.base_name == NOTED]
                if any(b'"step"' in filesystem.open_input_file(path).read() for path in paths):
                    return
            time.sleep(0.2)
        raise TimeoutError(f"no checkpoint was noted in {place}")


@dataclass
class AlwaysFails(SftTask):
    """A training that cannot succeed."""

    def loss(self, model: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, float]]:
        raise ValueError("this row\ncannot be learnt")
