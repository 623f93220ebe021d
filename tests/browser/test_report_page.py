"""The report in a real browser: no errors, nothing fetched, no sideways scrolling on a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from distill.report.stage import run
from tests.report_run import report_stage, write_run

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
    "--virtual-time-budget=5000",
    "--enable-logging=stderr",
]

# Headless Chromium has a least window width, so a phone is an iframe, whose own width decides the layout.
PROBE = """<!doctype html>
<iframe src="{url}" style="width:{width}px;height:800px;border:0"></iframe><pre id="out"></pre>
<script>document.querySelector("iframe").onload = (event) => {{
  const page = event.target.contentDocument, links = [...page.querySelectorAll("nav a, a.skip")];
  document.getElementById("out").textContent = JSON.stringify({{
    client: page.documentElement.clientWidth, scroll: page.documentElement.scrollWidth,
    sections: [...page.querySelectorAll("section")].map((s) => s.id),
    dead: links.filter((a) => !page.querySelector(a.getAttribute("href"))).length,
    focusable: links.every((a) => a.tabIndex === 0),
    unnamed: [...page.querySelectorAll("figure > svg")].filter((s) => !s.querySelector("title").textContent).length,
    plots: page.querySelectorAll("figure > svg").length,
    outside: page.querySelectorAll("[src], link[href]:not([href^='data:'])").length,
    scripts: page.querySelectorAll("script").length,
    ground: page.defaultView.getComputedStyle(page.body).backgroundColor,
  }});
}};</script>"""


Start = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("run"), tiny=tmp_path_factory.mktemp("bert"))
    run(report_stage(), folder)
    return folder.path / "report.html"


@pytest.fixture
def chromium(tmp_path: Path) -> Start:
    def start(url: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *more, "--dump-dom", url]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    return start


def look(chromium: Start, page: Path, folder: Path, width: int, *more: str):
    """Load the page in a frame of this width and return what the probe saw."""
    probe = folder / "probe.html"
    probe.write_text(PROBE.format(url=page.as_uri(), width=width), encoding="utf-8")
    found = re.search(r'<pre id="out">(.*?)</pre>', chromium(probe.as_uri(), *more).stdout, re.DOTALL)
    assert found is not None and found[1], "the page did not load in the frame"
    return json.loads(found[1])


def test_the_console_stays_silent_and_nothing_is_run_from_the_data(chromium, page):
    done = chromium(page.as_uri())
    assert "made-up" in done.stdout
    assert "CONSOLE" not in done.stderr


@pytest.mark.parametrize("width", [390, 1280])
def test_no_sideways_scrolling_and_every_section_is_there(chromium, page, tmp_path, width):
    seen = look(chromium, page, tmp_path, width)
    assert seen["scroll"] == seen["client"] <= width
    assert seen["sections"] == [
        "result", "teacher", "confusion", "learning", "rationales", "latency", "samples", "data", "stages",
    ]  # fmt: skip
    assert seen["dead"] == 0 and seen["focusable"]
    assert seen["plots"] == 8 and seen["unnamed"] == 0
    assert seen["outside"] == 0 and seen["scripts"] == 0


def test_dark_mode_has_a_dark_ground(chromium, page, tmp_path):
    light = look(chromium, page, tmp_path, 800, "--blink-settings=preferredColorScheme=1")["ground"]
    dark = look(chromium, page, tmp_path, 800, "--blink-settings=preferredColorScheme=0")["ground"]
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (light, dark)]
    assert brightness[0] > 600 and brightness[1] < 150
