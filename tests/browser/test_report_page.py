"""The report in a real browser: no errors, nothing fetched, no sideways scrolling on a phone."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.report.stage import run
from tests.helpers.browser_look import NEEDS_CHROMIUM, brightness, look
from tests.helpers.report_run import report_stage, write_run

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("run"), tiny=tmp_path_factory.mktemp("bert"))
    run(report_stage(), folder)
    return folder.path / "report.html"


def test_the_console_stays_silent_and_nothing_is_run_from_the_data(chromium, page):
    done = chromium(page.as_uri())
    assert "made-up" in done.stdout
    assert "CONSOLE" not in done.stderr


@pytest.mark.parametrize("width", [390, 1280])
def test_no_sideways_scrolling_and_every_section_is_there(chromium, page, tmp_path, width):
    seen = look(chromium, page, tmp_path, width)
    assert seen["scroll"] == seen["client"] <= width
    assert seen["sections"] == [
        "result", "teacher", "segments", "confusion", "learning", "rationales", "latency", "samples", "data", "stages",
    ]  # fmt: skip
    assert seen["dead"] == 0 and seen["focusable"]
    assert seen["plots"] == 9 and seen["unnamed"] == 0
    assert seen["outside"] == 0 and seen["scripts"] == 0


def test_dark_mode_has_a_dark_ground(chromium, page, tmp_path):
    assert brightness(chromium, page, tmp_path, dark=False) > 600
    assert brightness(chromium, page, tmp_path, dark=True) < 150
