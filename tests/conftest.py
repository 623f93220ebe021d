"""Fixtures that tests of several folders share. Heavy packages are imported when a fixture is asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

# The models here are tiny: a second thread gains nothing and disturbs what runs beside these tests.
THREADS = "OMP_NUM_THREADS"
os.environ.setdefault(THREADS, "1")
SERVER_KEY = {"SMALL_KEY": "right"}


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny causal language model's folder; read it, do not write into it."""
    from tests.helpers.tiny_llama import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("llama") / "tiny-llama")


@pytest.fixture(scope="session")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One process group for all trainings in this process: DeepSpeed keeps the first that it sees."""
    from tests.helpers.one_worker import process_group

    with process_group(tmp_path_factory.mktemp("group")):
        yield


@pytest.fixture(scope="session")
def start_ray() -> Iterator[Callable[[], None]]:
    """Starts a Ray of two cores unless one is running; workers inherit the keys of the tests' storage and server."""
    import ray

    from cluster.base.ray_session import ray_session
    from cluster.config import ClusterSettings
    from tests.helpers.local_s3 import CREDENTIALS

    with pytest.MonkeyPatch.context() as patch, ExitStack() as running:
        for name, value in (CREDENTIALS | SERVER_KEY).items():
            patch.setenv(name, value)
        made = logging.getLogRecordFactory()
        running.callback(logging.setLogRecordFactory, made)
        logging.setLogRecordFactory(lambda *told, **more: without_frames(made(*told, **more)))

        def start() -> None:
            if not ray.is_initialized():
                running.enter_context(ray_session(ClusterSettings(num_cpus=2, object_store_mb=100)))

        yield start


def without_frames(record: logging.LogRecord) -> logging.LogRecord:
    """Drop the frames of Ray Data's errors: pytest keeps the record, and the frames keep workers and their CPUs."""
    if record.name.startswith("ray.data"):
        record.exc_info = None
    return record


@pytest.fixture(scope="module")
def local_ray(start_ray: Callable[[], None]) -> None:
    """The Ray that all modules share which ask for it: a start takes many seconds."""
    start_ray()


@pytest.fixture(scope="module")
def no_ray() -> None:
    """Stops the shared Ray for a module that needs one with an environment of its own."""
    import ray

    ray.shutdown()
