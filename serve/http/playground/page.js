// The page of the service: asks /v1/score and shows what it says, for an example first.

import { fragment, parsed } from "./link.js";
import { count, show, useLabels } from "./results.js";
import { allowAsking, call, Refusal } from "./service.js";

const $ = (id) => document.getElementById(id);
// For an export that came without training pairs.
const EXAMPLE = {
  query: "wireless headphones",
  titles: [
    "Wireless Over-Ear Headphones, Bluetooth, Black", "True Wireless Earbuds with Charging Case", "Wired Headphones with 3.5 mm Plug",
    "Replacement Ear Cushions for Headphones", "Hard Travel Case for Headphones", "Garden Hose, 20 m",
  ],
};
let sides = []; // what can be asked: a model, and the arm by which to ask for it; "" asks without an arm
let examples = [];
let link = parsed(location.hash);
let borrowed = { query: null, titles: [] }; // the titles from the training data that were last ranked
let asked = 0;
let ranked = "";

// ---- asking the service

const lines = () => $("products").value.split("\n").map((line) => line.trim()).filter(Boolean);
const nameOf = (side) => side.arm || side.model.id;

function chosen() {
  const [left, right] = [$("left").value, $("right").value];
  return right === "" ? [sides[left]] : [sides[left], sides[right]];
}

async function titlesFor(query) {
  return (await call(`v1/examples?query=${encodeURIComponent(query)}`)).said.titles;
}

async function prepare() {
  if (sides.length) return;
  const models = (await call("v1/models")).said.data;
  examples = (await call("v1/examples")).said.queries;
  const [first] = models;
  $("model").textContent = `${first.id} · ${count(first.labels.length, "label")} · ${first.perspectives.join(", ")}`;
  $("queries").replaceChildren(...examples.map((query) => new Option(query)));
  useLabels(models);
  sides = models.flatMap((model) => (model.arms.length || model !== first ? model.arms : [""]).map((arm) => ({ arm, model })));
  const options = sides.map((side, n) => new Option(side.arm ? `${side.arm} (${side.model.id})` : side.model.id, n));
  $("left").replaceChildren(...options);
  $("right").replaceChildren(new Option("nothing", ""), ...options.map((option) => option.cloneNode(true)));
  const other = sides.findIndex((side) => side.model !== first); // not another arm with the same export
  $("right").value = other < 0 ? "" : other;
  $("arms").hidden = sides.length < 2;
}

async function scored(side, query, titles) {
  const products = titles.map((title, n) => ({ id: String(n), title }));
  const body = { query, products, explain: side.model.explanations };
  const { said, ...times } = await call("v1/score", body, side.arm ? { "X-Arm": side.arm } : {});
  return { name: nameOf(side), model: said.model, results: said.results, ...times };
}

async function rank(lead = "") {
  const query = $("query").value.trim();
  if (!query) return $("query").focus();
  const turn = ++asked;
  busy(true);
  try {
    await prepare();
    const own = lines();
    if (!own.length && borrowed.query !== query) borrowed = { query, titles: await titlesFor(query) };
    const titles = own.length ? own : borrowed.titles;
    if (!titles.length) throw new Refusal(0, "This model came without example titles. Paste some into the product list, one per line.");
    const answers = [];
    // One after the other, since they share a processor: neither shall wait for the other while it is timed.
    for (const side of chosen()) {
      answers.push(await scored(side, query, titles));
      if (turn !== asked) return;
    }
    show(query, titles, answers, lead);
    ranked = query;
    const arms = sides.length > 1 ? chosen().map((side) => side.arm) : null;
    history.replaceState(null, "", location.pathname + fragment({ query, titles, own: own.length > 0, arms }));
    $("copied").textContent = "";
  } catch (error) {
    if (turn === asked) refuse(error);
  } finally {
    if (turn === asked) busy(false);
  }
}

function busy(yes) {
  $("ask").querySelector("[type=submit]").setAttribute("aria-disabled", yes);
  $("results").setAttribute("aria-busy", yes);
  if (yes) $("status").textContent = "Ranking…";
}

function refuse(error) {
  $("status").textContent = "";
  $("problem").hidden = false;
  $("problem").textContent = error instanceof Refusal ? error.message : "The service cannot be reached.";
  $("give").hidden = error.status !== 401;
  if (!lines().length && error.status === 0) $("own").open = true;
}

// ---- opening with what a link names, or with an example

function restore() {
  $("query").value = link.query;
  $("products").value = link.own ? link.titles.join("\n") : "";
  borrowed = link.own ? { query: null, titles: [] } : { query: link.titles.length ? link.query : null, titles: link.titles };
  counted();
}

function chooseArms() {
  const places = (link.arms ?? []).slice(0, 2).map((arm) => sides.findIndex((side) => side.arm === arm));
  const unknown = places.indexOf(-1);
  if (unknown >= 0) throw new Refusal(404, `This service has no arm “${link.arms[unknown]}”, which the link names. Choose others, and rank.`);
  if (!places.length) return;
  $("left").value = places[0];
  $("right").value = places[1] ?? "";
}

async function open() {
  let lead = "";
  try {
    await prepare();
    chooseArms();
  } catch (error) {
    return refuse(error);
  }
  if (!$("query").value.trim()) {
    lead = "Example: ";
    $("query").value = examples[0] ?? EXAMPLE.query;
    if (!examples.length && !lines().length) $("products").value = EXAMPLE.titles.join("\n");
    counted();
  }
  return rank(lead);
}

// The link to the results must not take the place of the address, which says what is shown.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("results").focus();
});
addEventListener("hashchange", () => {
  link = parsed(location.hash);
  restore();
  open();
});

// ---- the form and the keyboard

function counted() {
  const n = lines().length;
  $("count").textContent = n ? `(${n} in the list)` : "(taken from the training data)";
}

function step(by) {
  const stops = [$("query"), ...$("results").querySelectorAll("summary")];
  const at = Math.max(0, stops.indexOf(document.activeElement));
  stops[Math.max(0, Math.min(stops.length - 1, at + by))].focus();
}

// Elsewhere the arrows scroll. In the query they belong to the browser's list of queries until results stand below it.
function mayStep(event) {
  const target = event.target;
  if (!$("results").children.length || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return false;
  if (target === $("query")) return target.value.trim() === ranked;
  return target.matches("#results summary") || (target === $("results") && event.key === "ArrowDown");
}

document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.matches("input, textarea, select")) {
    event.preventDefault();
    $("query").select();
  } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target === $("products")) {
    event.preventDefault();
    allowAsking();
    rank();
  } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && !$("lock").open && mayStep(event)) {
    event.preventDefault();
    step(event.key === "ArrowDown" ? 1 : -1);
  }
});

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  allowAsking();
  rank();
});
$("give").addEventListener("click", () => {
  allowAsking();
  open();
});
$("arms").addEventListener("change", () => rank());
$("products").addEventListener("input", counted);
$("clear").addEventListener("click", () => {
  $("products").value = "";
  counted();
  $("products").focus();
});
$("pick").addEventListener("click", async () => {
  allowAsking();
  try {
    $("products").value = (await titlesFor($("query").value.trim())).join("\n");
    counted();
    $("products").focus();
  } catch (error) {
    refuse(error);
  }
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    $("copied").textContent = "Copied.";
  } catch {
    $("copied").textContent = "The browser allows no copying here. The link stands in the address bar."; // as without https
  }
});

restore();
open();
