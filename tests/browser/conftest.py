"""Headless Chromium for the tests of pages."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.helpers.browser_look import CHROMIUM, FLAGS, Start


@pytest.fixture
def chromium(tmp_path: Path) -> Start:
    def start(url: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *more, "--dump-dom", url]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)

    return start
