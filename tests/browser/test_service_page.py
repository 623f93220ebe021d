"""The service's page in a real browser: it ranks, explains, says what is wrong, and fetches nothing from outside."""

from __future__ import annotations

import json
import queue
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route

from serve.config import AuthSettings, LimitSettings, ServeSettings
from serve.http.bearer_tokens import read_tokens
from serve.http.routes import make_api
from serve.replica.replica import QueuedStudent
from serve.scoring.scorer import Scorer
from tests.helpers.local_service import explaining_export, local_service, running
from tests.helpers.report_run import NAMES, SCRIPT

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--enable-logging=stderr",
]  # fmt: skip
TOO_EARLY = "Autofocus processing was blocked"  # the steps may set the focus before the page does
LIMITS = LimitSettings(products_per_request=8)

# A frame of the same origin does what a person does: the page's own policy forbids to write into it from elsewhere.
FRAME = """<!doctype html><meta charset="utf-8">
<iframe src="/{query}" style="width:{width}px;height:900px;border:0"></iframe>
<script>
const until = async (seen) => {{ while (!seen()) await new Promise((go) => setTimeout(go, 20)); }};
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

Do = Callable[..., dict[str, Any]]
TOKEN = "a-token-of-the-shop-0123456789"


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
def locked(service: QueuedStudent, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    monkeypatch.setenv("SHOP_TOKENS", TOKEN)
    return make_api(service, ServeSettings(limits=LIMITS), read_tokens(AuthSettings(tokens_env="SHOP_TOKENS")))


@pytest.fixture
def do(api: FastAPI, tmp_path: Path) -> Iterator[Do]:
    with driven(api, tmp_path) as run:
        yield run


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

    def run(steps: str, query: str = "", width: int = 1200, *flags: str) -> dict[str, Any]:
        frames.append(FRAME.format(steps=steps, query=query, width=width))
        log = folder / "chromium.log"
        command = [str(CHROMIUM), *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", f"{url}/frame"]
        with log.open("wb") as noise, subprocess.Popen(command, stdout=noise, stderr=noise) as browser:
            try:
                found = seen.get(timeout=600)
            except queue.Empty:
                pytest.fail(f"the steps did not end: {log.read_text('utf-8', 'replace')[-2000:]}")
            finally:
                browser.terminate()
        lines = log.read_text("utf-8", "replace").splitlines()
        assert not [line for line in lines if "CONSOLE" in line and TOO_EARLY not in line]
        return found

    with running(Starlette(routes=routes)) as url:
        yield run


WHAT_IS_SHOWN = """
await until(ranked);
const first = page.querySelector(".result");
return {
  titles: titles(), scores: [...page.querySelectorAll(".result .score")].map((s) => Number(s.textContent)),
  open: [...page.querySelectorAll(".result details")].map((d) => d.open), status: $("status").textContent,
  bars: [...first.querySelectorAll(".bar")].map((bar) =>
    [bar.getAttribute("aria-label"), [...bar.children].reduce((sum, part) => sum + parseFloat(part.style.width), 0)]),
  views: [...first.querySelectorAll(".view .name")].map((name) => name.textContent),
  rationales: [...first.querySelectorAll(".view blockquote")].map((said) => said.textContent),
  verdicts: first.querySelector(".verdicts").textContent,
  legend: [...$("legend").children].map((label) => label.textContent),
  address: view.location.search, scripts: page.querySelectorAll("script").length,
  outside: view.performance.getEntriesByType("resource").filter((e) => !e.name.startsWith(view.location.origin)).length,
};"""


def test_a_query_in_the_address_ranks_titles_of_the_training_pairs(do: Do) -> None:
    seen = do(WHAT_IS_SHOWN, f"?q={quote('red phone case 3')}")
    assert len(seen["titles"]) == LIMITS.products_per_request and any(SCRIPT in title for title in seen["titles"])
    assert seen["scores"] == sorted(seen["scores"], reverse=True)
    assert seen["open"] == [True] + [False] * 7, "the best one is explained at once"
    assert re.fullmatch(r"8 products for “red phone case 3” in \d+ ms", seen["status"])
    assert len(seen["bars"]) == 1 + len(NAMES)
    for said, width in seen["bars"]:
        assert re.fullmatch(r"Exact \d+ %, Substitute \d+ %, Complement \d+ %, Irrelevant \d+ %", said)
        assert width == pytest.approx(100, abs=0.1)
    assert seen["views"] == list(NAMES) and all(name in seen["verdicts"] for name in NAMES)
    assert all(said.startswith("The shopper wants a red phone case") for said in seen["rationales"])
    assert seen["legend"] == ["Exact", "Substitute", "Complement", "Irrelevant"]
    assert seen["address"] == "?q=red%20phone%20case%203"
    assert (seen["outside"], seen["scripts"]) == (0, 1), "a title is shown, never run"


BY_KEYBOARD = """
press(page.body, "/");
const query = page.activeElement.id;
$("query").value = "red phone";
$("products").value = "  red lamp \\n\\nblue mug\\nphone case";
press($("products"), "Enter", {ctrlKey: true});
await until(ranked);
$("query").focus();
const walked = [];
for (const key of ["ArrowDown", "ArrowDown", "ArrowUp", "ArrowUp"]) {
  press(page.activeElement, key);
  walked.push(page.activeElement.id || page.activeElement.querySelector(".rank").textContent);
}
// dispatchEvent tells whether the browser is left to do what it does: to scroll.
const scrolls = [page.body, $("results")].map((place) => press(place, "ArrowUp"));
scrolls.push(press($("query"), "ArrowDown", {shiftKey: true}));
$("results").focus();
press($("results"), "ArrowDown");
const first = page.activeElement.querySelector(".rank").textContent;
const tabs = [...page.querySelectorAll("summary")].every((summary) => summary.tabIndex === 0);
return {query, walked, tabs, scrolls, first, titles: titles().sort()};
"""


def test_one_s_own_products_and_the_keyboard(do: Do) -> None:
    seen = do(BY_KEYBOARD)
    assert seen["titles"] == ["blue mug", "phone case", "red lamp"]
    assert (seen["query"], seen["walked"], seen["tabs"]) == ("query", ["1", "2", "1", "query"], True)
    assert (seen["scrolls"], seen["first"]) == ([True, True, True], "1")


TOO_MANY = """
$("query").value = "red";
$("products").value = "lamp\\n".repeat(9);
$("ask").requestSubmit();
await until(() => !$("problem").hidden);
const said = $("problem").textContent;
$("products").value = "lamp";
$("ask").requestSubmit();
await until(ranked);
return {said, role: $("problem").getAttribute("role"), hidden: $("problem").hidden};
"""


def test_a_refusal_is_said_and_goes_away(do: Do) -> None:
    seen = do(TOO_MANY)
    assert seen == {"said": seen["said"], "role": "alert", "hidden": True}
    assert "products" in seen["said"] and "8" in seen["said"]


WITH_A_TOKEN = """
const unlock = (token) => { $("token").value = token; page.querySelector("#unlock button").click(); };
const titled = () => $("lock-title").textContent;
await until(() => $("lock").open);
const first = titled();
unlock("not-the-token");
await until(() => $("lock").open && titled() !== first);
const second = titled();
unlock("%s");
await until(ranked);
const kept = Object.values(view.sessionStorage).length;
return {first, second, kept, titles: titles().length, address: view.location.href};
"""


def test_the_page_asks_for_the_token(locked: FastAPI, tmp_path: Path) -> None:
    with driven(locked, tmp_path) as do:
        seen = do(WITH_A_TOKEN % TOKEN, "?q=red")
    assert (seen["first"], seen["second"]) == ("This service asks for a token", "That token is not known here")
    assert (seen["titles"], seen["kept"]) == (LIMITS.products_per_request, 1)
    assert TOKEN not in seen["address"]


LAYOUT = """
await until(ranked);
const named = [...page.querySelectorAll("input:not([hidden]), textarea")].every((field) => field.labels.length === 1);
const root = page.documentElement, ground = view.getComputedStyle(page.body).backgroundColor;
return {scroll: root.scrollWidth, client: root.clientWidth, named, ground};
"""


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_the_layout_fits_and_follows_the_colour_scheme(do: Do, width: int, dark: bool) -> None:
    seen = do(LAYOUT, "?q=red", width, f"--blink-settings=preferredColorScheme={0 if dark else 1}")
    assert seen["scroll"] == seen["client"] <= width and seen["named"]
    brightness = sum(map(int, re.findall(r"\d+", seen["ground"])[:3]))
    assert brightness < 150 if dark else brightness > 600
