"""The page of `broadfast audit` in a real browser: quiet, whole, readable on a phone and in the dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpcot.audit.audit_data import JudgedRun, collect
from mpcot.audit.audit_page import write_page
from tests.helpers.audit_run import write_run
from tests.helpers.browser_look import NEEDS_CHROMIUM, brightness, look

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = write_run(tmp_path_factory.mktemp("run"))
    return write_page(collect(JudgedRun.open(run_dir), top=9, least=0.5), run_dir)


def test_the_console_stays_silent_and_nothing_is_run_from_the_data(chromium, page):
    done = chromium(page.as_uri())
    assert "made-up" in done.stdout
    assert "CONSOLE" not in done.stderr


@pytest.mark.parametrize("width", [390, 1280])
def test_no_sideways_scrolling_and_every_section_is_there(chromium, page, tmp_path, width):
    seen = look(chromium, page, tmp_path, width)
    assert seen["scroll"] == seen["client"] <= width
    assert seen["sections"] == ["counts", "disputed", "back"]
    assert seen["dead"] == 0 and seen["focusable"]
    assert seen["outside"] == 0 and seen["scripts"] == 0


def test_dark_mode_has_a_dark_ground(chromium, page, tmp_path):
    assert brightness(chromium, page, tmp_path, dark=False) > 600
    assert brightness(chromium, page, tmp_path, dark=True) < 150
