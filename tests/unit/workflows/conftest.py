"""A run folder that the stages themselves made, with Ray's part played in this process."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cluster.base import progress
from cluster.base.shared_folder import SharedFolder
from cluster.base.tables import read_table
from mpcot.asking import generate
from mpcot.asking.answers import ANSWERS
from mpcot.asking.worker import AnswerWorker
from tests.helpers.small_run import small_config, small_models
from workflows import runner
from workflows.config import RunConfig, load_config
from workflows.stages import STAGES, find_stage, stages_of


async def unread(*news: Any) -> dict[str, Any]:
    return {}


SILENT = SimpleNamespace(put=SimpleNamespace(remote=unread))
TRAINED = {"3-sft": "tiny-llama", "6-dpo": "tiny-llama"}
QUICK = ("1-pairs", "2-rationales", "3-sft", "4-samples", "5-preferences", "6-dpo", "7-judgements")


def answer_here(
    plan: generate.GenerationPlan, folder: Path, shared: SharedFolder, label: str, counts: tuple[int, int, int]
) -> dict[str, float]:
    """What the Ray Data actors do, one batch after the other in this process."""
    files = shared.child(generate.MISSING)
    worker = AnswerWorker(plan, shared.child(ANSWERS), files.child(generate.TRIED), SILENT, counts[0], counts[2])

    async def work() -> list[dict[str, Any]]:
        return [told async for told in worker(read_table(Path(files.root)))]

    told = asyncio.run(work())
    return generate._told({name: np.array(values) for name, values in batch.items()} for batch in told)


@contextmanager
def no_ray(settings: Any) -> Iterator[list[dict[str, float]]]:
    yield [{"CPU": 2.0}]


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that ask an engine run in this process; nothing connects to Ray."""
    monkeypatch.setattr(generate, "_run_workers", answer_here)
    monkeypatch.setattr(runner, "ray_session", no_ray)


@pytest.fixture
def wide() -> Iterator[None]:
    """A console that breaks no line of a table."""
    before = progress.console()
    progress.use_console(Console(width=400))
    yield
    progress.use_console(before)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def config_file(tmp_path: Path, models: Path) -> Path:
    return small_config(tmp_path / "small.toml", models)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """Stages 1, 2, 4 and 7 as they are; the trainings between them hand on the tiny model."""
    root = tmp_path_factory.mktemp("small")
    config = load_config(small_config(root / "small.toml", models))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "_run_workers", answer_here)
        for name in QUICK:
            make(config, root / "run", name, models)
    return root / "run"


def make(config: RunConfig, run_dir: Path, name: str, models: Path) -> None:
    stage = find_stage(name, stages_of(config))
    folder = runner.stage_folder(config, run_dir, stage)
    folder.path.mkdir(parents=True)
    if name in TRAINED:
        shutil.copytree(models / TRAINED[name], folder.path / "model")
        folder.finish({"train": 1})
    elif name == "5-preferences":
        from cluster.base.tables import write_table
        from mpcot.records import PREFERENCE

        write_table(folder.path / "preferences.parquet", PREFERENCE.empty_table())
        folder.finish({"preferences": 0})
    else:
        stage.run()(stage.settings(config), folder)


@pytest.fixture
def run_dir(made_once: Path, tmp_path: Path) -> Path:
    """A copy of the run folder, to be broken."""
    assert [s.name for s in STAGES][: len(QUICK)] == list(QUICK)
    return Path(shutil.copytree(made_once, tmp_path / "run"))
