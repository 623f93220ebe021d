"""The page of `broadfast inspect` in a real browser: quiet, whole, readable on a phone and in the dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpcot.inspect.inspect_data import collect
from mpcot.inspect.inspect_page import write_page
from tests.helpers.browser_look import NEEDS_CHROMIUM, brightness, look
from tests.helpers.inspect_run import write_judgements, write_run

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = write_run(tmp_path_factory.mktemp("run"))
    write_judgements(run_dir)
    return write_page(collect(run_dir, 3), run_dir / "inspect.html")


def test_the_console_stays_silent_and_nothing_is_run_from_the_data(chromium, page):
    done = chromium(page.as_uri())
    assert "made-up" in done.stdout
    assert "CONSOLE" not in done.stderr


@pytest.mark.parametrize("width", [390, 1280])
def test_no_sideways_scrolling_and_every_section_is_there(chromium, page, tmp_path, width):
    seen = look(chromium, page, tmp_path, width)
    assert seen["scroll"] == seen["client"] <= width
    stages = ("2-rationales", "7-judgements")
    parts = ("", "-conflicts", "-samples")
    assert seen["sections"] == [stage + part for stage in stages for part in parts] + ["labels"]
    assert seen["dead"] == 0 and seen["focusable"]
    assert seen["plots"] == 2 and seen["unnamed"] == 0
    assert seen["outside"] == 0 and seen["scripts"] == 0


def test_dark_mode_has_a_dark_ground(chromium, page, tmp_path):
    assert brightness(chromium, page, tmp_path, dark=False) > 600
    assert brightness(chromium, page, tmp_path, dark=True) < 150
