// Shows what the service says, of one model or of two. Texts from outside are only ever set as text.

const $ = (id) => document.getElementById(id);
let labels = [];

// ---- labels, their names and colours

export const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const place = (code) => labels.findIndex((label) => label.code === code);
const colour = (code) => (place(code) < 0 ? "var(--line)" : `var(--l${place(code) % 6})`);
const named = (code) => labels[place(code)]?.name ?? code;
const ordered = (probabilities) => Object.entries(probabilities).sort((a, b) => place(a[0]) - place(b[0]));
const percent = (share) => `${Math.round(100 * share)} %`;
const rounded = (ms) => (ms < 10 ? ms.toFixed(1) : Math.round(ms));

export function useLabels(models) {
  const every = models.flatMap((model) => model.labels);
  labels = every.filter((label, n) => every.findIndex((other) => other.code === label.code) === n);
  $("legend").replaceChildren(...labels.map((label) => {
    const item = paint(element("li", "", label.name), label.code);
    item.title = label.meaning;
    return item;
  }));
}

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

// ---- the lists, one for each model that was asked

// `answers` has, for each side, its name, the id of its model, its results and its times in milliseconds.
export function show(query, titles, answers, lead) {
  const lists = answers.map(({ results }) => [...results].sort((a, b) => b.score - a.score));
  const two = lists.length > 1;
  const said = `${lead}${count(titles.length, "product")} for “${query}”`;
  $("status").textContent = two ? `${said}. ${compared(...lists)}` : `${said} in ${times(answers[0])}`;
  $("problem").hidden = $("give").hidden = true;
  $("legend").hidden = $("copy").hidden = false;
  document.body.classList.toggle("two", two);
  $("results").replaceChildren(...answers.map((answer, n) => sideOf(answer, lists[n], titles, n ? lists[0] : null, answers[0].name)));
  $("results").querySelectorAll(".side > h2, .side > .times").forEach((part) => (part.hidden = !two));
  if (!two) $("results").querySelector("details").open = true;
}

function times({ ms, replicaMs }) {
  const all = `${rounded(ms)} ms`;
  return replicaMs === null ? all : `${all}, of which the service took ${rounded(replicaMs)} ms`;
}

function compared(left, right) {
  const moved = right.filter(({ id }, n) => left[n].id !== id).length;
  const before = Object.fromEntries(left.map(({ id, label }) => [id, label]));
  const other = right.filter(({ id, label }) => before[id] !== label).length;
  return `${moved || "None"} of them moved, and ${other || "none"} got another label.`;
}

function sideOf(answer, list, titles, other, otherName) {
  const [side, find] = clone("side");
  find("h2").replaceChildren(answer.name, " ", element("span", "soft", answer.model === answer.name ? "" : answer.model));
  find(".times").textContent = times(answer);
  find("ol").setAttribute("aria-label", `Results of ${answer.name}, best first`);
  find("ol").replaceChildren(...list.map((result, n) => {
    const item = resultItem(result, titles[Number(result.id)], n + 1);
    if (other) tellMove(item, result, n, other, otherName);
    return item;
  }));
  return side;
}

function tellMove(item, result, rank, other, otherName) {
  const before = other.findIndex(({ id }) => id === result.id);
  const by = before - rank;
  const mark = item.querySelector(".moved");
  mark.hidden = false;
  mark.textContent = by ? `${by > 0 ? "▲" : "▼"} ${Math.abs(by)}` : "=";
  mark.title = by ? `${count(Math.abs(by), "place")} ${by > 0 ? "higher" : "lower"} than in ${otherName}` : `In the same place as in ${otherName}`;
  mark.setAttribute("aria-label", mark.title);
  mark.classList.toggle("up", by > 0);
  mark.classList.toggle("down", by < 0);
  if (other[before].label === result.label) return;
  const said = element("span", "before", `in ${otherName} `);
  said.append(chip(other[before].label));
  item.querySelector(".verdicts").prepend(said);
}

function resultItem(result, title, rankNumber) {
  const [item, find] = clone("result");
  item.dataset.id = result.id;
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

// ---- the same product in both lists

const twins = (item) => document.querySelectorAll(`.two .result[data-id="${item.dataset.id}"]`);

function point(event) {
  document.querySelectorAll(".same").forEach((item) => item.classList.remove("same"));
  const item = event.target.closest(".result");
  if (item) twins(item).forEach((twin) => twin.classList.add("same"));
}

$("results").addEventListener("pointerover", point);
$("results").addEventListener("focusin", point);
// What is opened in one list opens in the other, so that its reasons can be compared. This event does not bubble.
$("results").addEventListener("toggle", ({ target }) => {
  twins(target.closest(".result")).forEach((twin) => (twin.querySelector("details").open = target.open));
}, true);
