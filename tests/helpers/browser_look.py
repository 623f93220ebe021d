"""A page in headless Chromium: what its layout and its elements are, at a width and in light or dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
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
    dead: links.filter((a) => !page.getElementById(a.getAttribute("href").slice(1))).length,
    focusable: links.every((a) => a.tabIndex === 0),
    unnamed: [...page.querySelectorAll("figure > svg")].filter((s) => !s.querySelector("title").textContent).length,
    plots: page.querySelectorAll("figure > svg").length,
    outside: page.querySelectorAll("[src], link[href]:not([href^='data:'])").length,
    scripts: page.querySelectorAll("script").length,
    ground: page.defaultView.getComputedStyle(page.body).backgroundColor,
  }});
}};</script>"""


Start = Callable[..., "subprocess.CompletedProcess[str]"]


def look(chromium: Start, page: Path, folder: Path, width: int, *more: str):
    """Load the page in a frame of this width and return what the probe saw."""
    probe = folder / "probe.html"
    probe.write_text(PROBE.format(url=page.as_uri(), width=width), encoding="utf-8")
    found = re.search(r'<pre id="out">(.*?)</pre>', chromium(probe.as_uri(), *more).stdout, re.DOTALL)
    assert found is not None and found[1], "the page did not load in the frame"
    return json.loads(found[1])


def brightness(chromium: Start, page: Path, folder: Path, dark: bool) -> int:
    """Return the sum of red, green and blue of the page's ground, 0 to 765."""
    colour = look(chromium, page, folder, 800, f"--blink-settings=preferredColorScheme={0 if dark else 1}")["ground"]
    return sum(map(int, re.findall(r"\d+", colour)[:3]))
