"""Headless Chromium for the tests of pages, and the service whose pages they look at."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fastapi import FastAPI

from serve.config import ServeSettings
from serve.http.routes import make_api
from serve.replica.replica import QueuedStudent
from serve.scoring.scorer import Scorer
from tests.helpers.browser_look import CHROMIUM, FLAGS, Start
from tests.helpers.driven_page import LIMITS, Do, driven
from tests.helpers.local_service import explaining_export, local_service


@pytest.fixture
def chromium(tmp_path: Path) -> Start:
    def start(url: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *more, "--dump-dom", url]
        for patience_s in (120, 480):  # a browser that hangs is started anew once
            with suppress(subprocess.TimeoutExpired):
                return subprocess.run(command, capture_output=True, text=True, timeout=patience_s, check=True)
        pytest.fail("Chromium did not answer in two tries")

    return start


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer.load(explaining_export(tmp_path_factory.mktemp("run")), ServeSettings())


@pytest.fixture
def service(scorer: Scorer) -> QueuedStudent:
    """A service for one test: its queue belongs to the event loop of the server that first asks it."""
    return local_service(scorer)


@pytest.fixture
def api(service: QueuedStudent) -> FastAPI:
    return make_api(service, ServeSettings(limits=LIMITS))


@pytest.fixture
def do(api: FastAPI, tmp_path: Path) -> Iterator[Do]:
    with driven(api, tmp_path) as run:
        yield run
