"""The run of the whole pipeline that the tests of this folder look at.

It works with one thread and needs many minutes. Where pytest runs tests in several processes, as `make test` does,
these tests come first: one process waits for the run, and the others have the other core. In a single process the run
starts before all tests, and goes on beside the unit tests and those of tests/ray, which come first then.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import THREADS
from tests.e2e.small import ROOT, changes, no_models

FOLDER = Path(__file__).parent
ORDERS = {"one process": ("unit", "ray", "e2e"), "several": ("e2e", "faults", "ray", "browser")}  # the others come last
RUN = pytest.StashKey["Run"]()


class Run:
    """`broadfast run` in a process group of its own."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="broadfast-e2e-")
        self.out = Path(self.folder.name) / "run"
        command = [sys.executable, "-m", "workflows.cli", "run", "workflows/configs/demo.toml", "--out", str(self.out)]
        self.said = (Path(self.folder.name) / "said.txt").open("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [*command, *changes()],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name != THREADS},
            start_new_session=True,
            stdout=self.said,
            stderr=subprocess.STDOUT,
        )

    def end(self) -> Path:
        """Wait for the end and return the run folder."""
        code = self.process.wait()
        self.said.seek(0)
        log = self.out / "broadfast.log"
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:] if log.exists() else ""
        assert code == 0, f"{self.said.read()}\n{tail}"
        return self.out

    def clear(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            self.process.wait()
        self.said.close()
        self.folder.cleanup()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put what waits for the run behind what does not; with several processes, what takes longest comes first."""
    order = ORDERS["several" if hasattr(config, "workerinput") else "one process"]
    place = {folder: number for number, folder in enumerate(order)}
    items.sort(key=lambda item: place.get(item.path.relative_to(FOLDER.parent).parts[0], len(order)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the run if a test wants it."""
    wanted = any(
        "run_dir" in getattr(item, "fixturenames", ()) and FOLDER in item.path.parents for item in session.items
    )
    alone = not hasattr(session.config, "workerinput")  # of several processes of pytest-xdist, one needs the run
    if wanted and alone and not session.config.option.collectonly and not no_models():
        session.config.stash[RUN] = Run()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if RUN in session.config.stash:
        session.config.stash[RUN].clear()


@pytest.fixture(scope="session")
def run_dir(pytestconfig: pytest.Config) -> Path:
    """The folder of the finished run."""
    if RUN not in pytestconfig.stash:
        pytestconfig.stash[RUN] = Run()
    return pytestconfig.stash[RUN].end()
