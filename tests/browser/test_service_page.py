"""The service's page in a real browser: it ranks, explains, says what is wrong, and fetches nothing from outside."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from fastapi import FastAPI

from serve.config import AuthSettings, ServeSettings
from serve.http.bearer_tokens import read_tokens
from serve.http.routes import make_api
from serve.replica.replica import QueuedStudent
from serve.scoring.scorer import Scorer
from tests.helpers.browser_look import NEEDS_CHROMIUM
from tests.helpers.driven_page import LAYOUT, LIMITS, TIMES, Do, driven
from tests.helpers.local_service import local_service
from tests.helpers.report_run import NAMES, SCRIPT, write_export

pytestmark = NEEDS_CHROMIUM

TOKEN = "a-token-of-the-shop-0123456789"


@pytest.fixture
def locked(service: QueuedStudent, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    monkeypatch.setenv("SHOP_TOKENS", TOKEN)
    return make_api(service, ServeSettings(limits=LIMITS), read_tokens(AuthSettings(tokens_env="SHOP_TOKENS")))


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
  address: view.location.search + view.location.hash, scripts: page.querySelectorAll("script").length,
  outside: view.performance.getEntriesByType("resource").filter((e) => !e.name.startsWith(view.location.origin)).length,
};"""


def test_a_query_in_the_address_ranks_titles_of_the_training_pairs(do: Do) -> None:
    seen = do(WHAT_IS_SHOWN, f"#q={quote('red phone case 3')}")
    assert len(seen["titles"]) == LIMITS.products_per_request and any(SCRIPT in title for title in seen["titles"])
    assert seen["scores"] == sorted(seen["scores"], reverse=True)
    assert seen["open"] == [True] + [False] * 7, "the best one is explained at once"
    whole, replica = re.fullmatch(rf"8 products for “red phone case 3” in {TIMES}", seen["status"]).groups()
    assert float(whole) >= float(replica) > 0
    assert len(seen["bars"]) == 1 + len(NAMES)
    for said, width in seen["bars"]:
        assert re.fullmatch(r"Exact \d+ %, Substitute \d+ %, Complement \d+ %, Irrelevant \d+ %", said)
        assert width == pytest.approx(100, abs=0.1)
    assert seen["views"] == list(NAMES) and all(name in seen["verdicts"] for name in NAMES)
    assert all(said.startswith("The shopper wants a red phone case") for said in seen["rationales"])
    assert seen["legend"] == ["Exact", "Substitute", "Complement", "Irrelevant"]
    assert seen["address"].startswith("#q=red+phone+case+3&t=") and seen["address"].count("&t=") == 8
    assert (seen["outside"], seen["scripts"]) == (0, 1), "a title is shown, never run"


EXAMPLE = """
await until(ranked);
return {
  titles: titles(), query: $("query").value, status: $("status").textContent, arms: $("arms").hidden,
  asked: $("lock").open,
};
"""


def test_it_opens_with_an_example_of_the_training_pairs(do: Do) -> None:
    seen = do(EXAMPLE)
    assert seen["query"].startswith("red phone case") and len(seen["titles"]) == LIMITS.products_per_request
    assert re.fullmatch(rf"Example: 8 products for “{seen['query']}” in {TIMES}", seen["status"])
    assert (seen["arms"], seen["asked"]) == (True, False), "there is but one model, and it needs no token"


def test_an_export_without_training_pairs_opens_with_an_example_of_our_own(tmp_path: Path) -> None:
    plain = local_service(Scorer.load(write_export(tmp_path / "export", tmp_path / "bert"), ServeSettings()))
    with driven(make_api(plain, ServeSettings()), tmp_path) as do:
        seen = do(EXAMPLE)
    assert seen["query"] == "wireless headphones" and "Garden Hose, 20 m" in seen["titles"]
    assert seen["status"].startswith("Example: 6 products for “wireless headphones” in ")


SKIPPED = """
await until(ranked);
$("query").value = "blue mug";
$("products").value = "blue mug\\nred lamp";
$("ask").requestSubmit();
await until(() => $("status").textContent.includes("blue mug") && ranked());
const before = view.location.href;
page.querySelector(".skip").click();
await new Promise((go) => setTimeout(go, 200));
return {
  kept: view.location.href === before, focused: page.activeElement.id, query: $("query").value, titles: titles().length,
};
"""


def test_to_skip_to_the_results_keeps_them(do: Do) -> None:
    assert do(SKIPPED) == {"kept": True, "focused": "results", "query": "blue mug", "titles": 2}


LINKED = """
await until(ranked);
const shown = () => ({query: $("query").value, products: $("products").value, titles: titles()});
const asked = async (query, products) => {
  $("query").value = query;
  $("products").value = products;
  $("ask").requestSubmit();
  await until(() => $("status").textContent.includes(query) && ranked());
  let copied;
  const clipboard = {writeText: async (text) => copied = text};
  Object.defineProperty(view.navigator, "clipboard", {configurable: true, value: clipboard});
  $("copy").click();
  await until(() => $("copied").textContent === "Copied.");
  return {link: copied, address: view.location.href, ...shown()};
};
const first = await asked("blue mug & saucer", "blue mug\\n100 % red+lamp #2");
const second = await asked("red lamp", "");
const follow = async ({link, query}) => {
  view.location.hash = new URL(link).hash;
  await until(() => $("status").textContent.includes(query) && ranked());
  return shown();
};
const again = [await follow(first), await follow(second)];
return {made: [first, second], again};
"""


def test_a_link_restores_the_ranking_and_is_in_no_request(do: Do) -> None:
    seen = do(LINKED)
    for made, again in zip(seen["made"], seen["again"], strict=True):
        assert made["link"] == made["address"] and "?" not in made["link"].partition("#")[0]
        assert again == {name: made[name] for name in ("query", "products", "titles")}
    assert sorted(seen["again"][0]["titles"]) == ["100 % red+lamp #2", "blue mug"]
    opened = do(WHAT_IS_SHOWN, "#" + seen["made"][0]["link"].partition("#")[2])
    assert opened["titles"] == seen["made"][0]["titles"] and opened["status"].startswith("2 products for “blue mug & s")


NO_CLIPBOARD = """
await until(ranked);
Object.defineProperty(view.navigator, "clipboard", {configurable: true, value: undefined});
$("copy").click();
await until(() => $("copied").textContent);
return {said: $("copied").textContent};
"""


def test_where_nothing_can_be_copied_the_page_says_where_the_link_is(do: Do) -> None:
    assert "address bar" in do(NO_CLIPBOARD)["said"]


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
await until(() => !$("give").hidden);
const said = [$("problem").textContent, $("lock").open];
$("give").click();
await until(() => $("lock").open);
const first = titled();
unlock("not-the-token");
await until(() => $("lock").open && titled() !== first);
const second = titled();
unlock("%s");
await until(ranked);
const kept = Object.values(view.sessionStorage).length;
return {said, first, second, kept, hidden: $("give").hidden, titles: titles().length, address: view.location.href};
"""


def test_the_page_says_that_a_token_is_needed_and_asks_for_it_when_told(locked: FastAPI, tmp_path: Path) -> None:
    with driven(locked, tmp_path) as do:
        seen = do(WITH_A_TOKEN % TOKEN)
    assert seen["said"] == [
        "This service ranks only for those who have a token. If you have one, enter it to go on.", False,
    ]  # fmt: skip
    assert (seen["first"], seen["second"]) == ("This service asks for a token", "That token is not known here")
    assert (seen["titles"], seen["kept"]) == (LIMITS.products_per_request, 1)
    assert "#q=" in seen["address"] and TOKEN not in seen["address"] and seen["hidden"]


@pytest.mark.parametrize(("width", "dark"), [(375, False), (1280, True)])
def test_the_layout_fits_and_follows_the_colour_scheme(do: Do, width: int, dark: bool) -> None:
    seen = do(LAYOUT, "", width, f"--blink-settings=preferredColorScheme={0 if dark else 1}")
    assert seen["scroll"] == seen["client"] <= width and seen["named"]
    brightness = sum(map(int, re.findall(r"\d+", seen["ground"])[:3]))
    assert brightness < 150 if dark else brightness > 600
