"""The service's page in headless Chromium: runs steps in it, and returns what they saw."""

from __future__ import annotations

import json
import queue
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route

from serve.config import LimitSettings
from tests.helpers.browser_look import CHROMIUM
from tests.helpers.local_service import running

# The last two keep frames coming to a window that nobody sees: a dialog's `close` is told with the next frame.
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--enable-logging=stderr",
    "--disable-backgrounding-occluded-windows", "--disable-renderer-backgrounding",
]  # fmt: skip
TRIES, PATIENCE_S = 2, 150
TIMES = r"([\d.]+) ms, of which the service took ([\d.]+) ms"

# A frame of the same origin does what a person does: the page's own policy forbids to write into it from elsewhere.
FRAME = """<!doctype html><meta charset="utf-8">
<iframe src="/{query}" style="width:{width}px;height:900px;border:0"></iframe>
<script>
const until = async (seen) => {{
  const started = Date.now();
  while (!seen()) {{
    if (Date.now() - started > 60000) throw new Error(`never came in 60 s: ${{seen}}`);
    await new Promise((go) => setTimeout(go, 20));
  }}
}};
document.querySelector("iframe").onload = async (event) => {{
  const view = event.target.contentWindow, page = view.document, $ = (id) => page.getElementById(id);
  const press = (target, key, more) =>
    target.dispatchEvent(new view.KeyboardEvent("keydown", {{key, bubbles: true, cancelable: true, ...more}}));
  const ranked = () => $("results").children.length > 0 && $("results").getAttribute("aria-busy") === "false";
  const titles = () => [...page.querySelectorAll(".result .title")].map((title) => title.textContent);
  let seen;
  try {{ seen = await (async () => {{ {steps} }})(); }} catch (error) {{ seen = {{error: String(error)}}; }}
  await fetch("/seen", {{method: "POST", body: JSON.stringify(seen)}});
}};</script>"""

LAYOUT = """
await until(ranked);
const fields = [...page.querySelectorAll("input:not([hidden]), textarea, select")];
const named = fields.every((field) => field.labels.length === 1);
const root = page.documentElement, ground = view.getComputedStyle(page.body).backgroundColor;
return {scroll: root.scrollWidth, client: root.clientWidth, named, ground};
"""

Do = Callable[..., dict[str, Any]]
LIMITS = LimitSettings(products_per_request=8)


@contextmanager
def driven(api: FastAPI, folder: Path) -> Iterator[Do]:
    """Yield a function that runs JavaScript steps against the page in a frame and returns what they return.

    The browser's clock is the real one: the frame posts what it saw, and Chromium is stopped then.
    """
    frames: list[str] = []
    seen: queue.Queue[dict[str, Any]] = queue.Queue()

    async def note(request: Request) -> Response:
        seen.put(json.loads(await request.body()))
        return Response(status_code=204)

    posts = Route("/seen", note, methods=["POST"])
    routes = [Route("/frame", lambda _: HTMLResponse(frames[-1])), posts, Mount("", api)]

    def attempt(log: Path, flags: tuple[str, ...]) -> dict[str, Any]:
        command = [str(CHROMIUM), *FLAGS, *flags, f"--user-data-dir={log.with_suffix('')}", f"{url}/frame"]
        with log.open("wb") as noise, subprocess.Popen(command, stdout=noise, stderr=noise) as browser:
            try:
                return seen.get(timeout=PATIENCE_S)
            finally:
                browser.terminate()

    def run(steps: str, query: str = "", width: int = 1200, *flags: str) -> dict[str, Any]:
        frames.append(FRAME.format(steps=steps, query=query, width=width))
        for log in (folder / f"chromium-{len(frames)}-{tried}.log" for tried in range(TRIES)):
            try:
                found = attempt(log, flags)
            except queue.Empty:  # a page that hangs says so itself, so the browser does
                continue
            lines = log.read_text("utf-8", "replace").splitlines()
            assert not [line for line in lines if "CONSOLE" in line]
            assert "error" not in found, found["error"]
            return found
        pytest.fail(f"the browser did not answer in {TRIES} tries: {log.read_text('utf-8', 'replace')[-2000:]}")

    with running(Starlette(routes=routes)) as url:
        yield run
