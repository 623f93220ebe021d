// The page of the service: asks /v1/score and shows what it says. Texts from outside are only ever set as text.

const $ = (id) => document.getElementById(id);
const KEY = "broadfast token";
let model = null;
let asked = 0;
let ranked = "";

class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

// ---- asking the service

async function call(path, body) {
  const token = sessionStorage.getItem(KEY);
  const headers = { Accept: "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  if (answer.status === 401) {
    await unlock(Boolean(token));
    return call(path, body);
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refusal(answer.status, said.detail || `The service answered ${answer.status}.`);
  return said;
}

let unlocking = null;

function unlock(wrong) {
  sessionStorage.removeItem(KEY);
  unlocking ??= new Promise((done, never) => {
    $("lock-title").textContent = wrong ? "That token is not known here" : "This service asks for a token";
    $("token").value = $("lock").returnValue = "";
    $("lock").showModal();
    $("lock").onclose = () => {
      unlocking = null;
      if ($("lock").returnValue !== "given") return never(new Refusal(401, "This service does not answer without a token."));
      const given = $("token").value.trim();
      if (/[^\x21-\x7e]/.test(given)) return unlock(true).then(done, never); // fits into no header
      sessionStorage.setItem(KEY, given);
      return done();
    };
  });
  return unlocking;
}

const lines = () => $("products").value.split("\n").map((line) => line.trim()).filter(Boolean);

async function titlesFor(query) {
  return (await call(`v1/examples?query=${encodeURIComponent(query)}`)).titles;
}

async function rank() {
  const query = $("query").value.trim();
  if (!query) return $("query").focus();
  const turn = ++asked;
  busy(true);
  try {
    if (!model) await describe();
    const titles = lines().length ? lines() : await titlesFor(query);
    if (!titles.length) throw new Refusal(0, "This model came without example titles. Paste some into the product list, one per line.");
    const products = titles.map((title, n) => ({ id: String(n), title }));
    const started = performance.now();
    const answer = await call("v1/score", { query, products, explain: model.explanations });
    if (turn === asked) show(query, titles, answer.results, performance.now() - started);
  } catch (error) {
    if (turn === asked) refuse(error);
  } finally {
    if (turn === asked) busy(false);
  }
}

// ---- showing what it says

function busy(yes) {
  $("ask").querySelector("[type=submit]").setAttribute("aria-disabled", yes);
  $("results").setAttribute("aria-busy", yes);
  if (yes) $("status").textContent = "Ranking…";
}

function refuse(error) {
  $("status").textContent = "";
  $("problem").hidden = false;
  $("problem").textContent = error instanceof Refusal ? error.message : "The service cannot be reached.";
  if (!lines().length && error.status === 0) $("own").open = true;
}

function show(query, titles, results, ms) {
  const sorted = [...results].sort((a, b) => b.score - a.score);
  ranked = query;
  $("problem").hidden = true;
  $("legend").hidden = false;
  $("status").textContent = `${count(sorted.length, "product")} for “${query}” in ${Math.round(ms)} ms`;
  $("results").replaceChildren(...sorted.map((result, n) => resultItem(result, titles[Number(result.id)], n + 1)));
  $("results").querySelector("details").open = true;
  history.replaceState(null, "", `?q=${encodeURIComponent(query)}`);
}

const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const place = (code) => model.labels.findIndex((label) => label.code === code);
const colour = (code) => (place(code) < 0 ? "var(--line)" : `var(--l${place(code) % 6})`);
const named = (code) => model.labels[place(code)]?.name ?? code;
const ordered = (probabilities) => Object.entries(probabilities).sort((a, b) => place(a[0]) - place(b[0]));
const percent = (share) => `${Math.round(100 * share)} %`;

function clone(template) {
  const made = $(template).content.firstElementChild.cloneNode(true);
  return [made, (selector) => made.querySelector(selector)];
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function paint(target, code) {
  target.style.setProperty("--colour", colour(code));
  return target;
}

function chip(code) {
  return paint(element("span", "chip", named(code)), code);
}

function fillBar(bar, probabilities) {
  const parts = ordered(probabilities);
  bar.title = parts.map(([code, share]) => `${named(code)} ${percent(share)}`).join(", ");
  bar.setAttribute("aria-label", bar.title);
  bar.replaceChildren(...parts.map(([code, share]) => {
    const part = paint(document.createElement("i"), code);
    part.style.width = `${100 * share}%`;
    return part;
  }));
}

function resultItem(result, title, rankNumber) {
  const [item, find] = clone("result");
  find(".rank").textContent = rankNumber;
  find(".title").textContent = title;
  find(".score").textContent = result.score.toFixed(3);
  find(".score").title = "Relevance from 0 to 1: the expected worth (gain) of the label";
  find(".label").replaceChildren(chip(result.label));
  fillBar(find(".bar"), result.probabilities);
  find(".verdicts").replaceChildren(...Object.entries(result.perspectives).map(([name, { verdict }]) => {
    const said = element("span", "", `${name} `);
    said.append(chip(verdict));
    return said;
  }));
  find(".why").replaceChildren(shares(result.probabilities), ...reasons(result));
  return item;
}

function shares(probabilities) {
  const line = element("p", "soft", "");
  line.append(...ordered(probabilities).map(([code, share]) => {
    const said = chip(code);
    said.append(` ${percent(share)}`);
    return said;
  }));
  return line;
}

function reasons(result) {
  const nearest = Object.fromEntries((result.explanations ?? []).map((found) => [found.perspective, found]));
  const names = [...new Set([...Object.keys(result.perspectives), ...Object.keys(nearest)])];
  if (!names.length) return [element("p", "soft", "This model gives no verdicts per perspective and came without rationales.")];
  return names.map((name) => view(name, result.perspectives[name], nearest[name]));
}

function view(name, verdict, near) {
  const [section, find] = clone("view");
  find(".name").textContent = name;
  if (verdict) {
    find(".chip").replaceWith(chip(verdict.verdict));
    fillBar(find(".bar"), verdict.probabilities);
  } else {
    find(".chip").remove();
    find(".bar").remove();
  }
  find("blockquote").textContent = near ? near.rationale : "";
  find("blockquote").hidden = !near;
  if (near) {
    find(".like").append("The teacher wrote this about the most similar training pair: ", element("b", "", near.query), " and ",
      element("b", "", near.title), `, ${near.verdict ? named(near.verdict) : "no verdict"}`,
      `; similarity ${near.similarity.toFixed(2)}.`);
  }
  return section;
}

// ---- starting, and the keyboard

async function describe() {
  const [found] = (await call("v1/models")).data;
  $("model").textContent = `${found.id} · ${count(found.labels.length, "label")} · ${found.perspectives.join(", ")}`;
  model = found;
  $("legend").replaceChildren(...found.labels.map((label) => {
    const item = paint(element("li", "", label.name), label.code);
    item.title = label.meaning;
    return item;
  }));
}

function counted() {
  const n = lines().length;
  $("count").textContent = n ? `(${n} of your own)` : "(taken from the training data)";
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
  if (event.key === "/" && !event.target.matches("input, textarea")) {
    event.preventDefault();
    $("query").select();
  } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target === $("products")) {
    event.preventDefault();
    rank();
  } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && !$("lock").open && mayStep(event)) {
    event.preventDefault();
    step(event.key === "ArrowDown" ? 1 : -1);
  }
});

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  rank();
});
$("products").addEventListener("input", counted);
$("clear").addEventListener("click", () => {
  $("products").value = "";
  counted();
  $("products").focus();
});
$("pick").addEventListener("click", async () => {
  try {
    $("products").value = (await titlesFor($("query").value.trim())).join("\n");
    counted();
    $("products").focus();
  } catch (error) {
    refuse(error);
  }
});

async function start() {
  counted();
  try {
    await describe();
    const { queries } = await call("v1/examples");
    $("queries").replaceChildren(...queries.map((query) => new Option(query)));
    if (queries.length) $("query").placeholder = queries[0];
  } catch (error) {
    return refuse(error);
  }
  const wanted = new URLSearchParams(location.search).get("q");
  if (wanted) {
    $("query").value = wanted;
    await rank();
  }
}

start();
