// The page of the drift: asks /v1/drift and shows what it says. Texts from outside are only ever set as text.

const $ = (id) => document.getElementById(id);
const KEY = "broadfast token"; // where the playground keeps the token of this tab
const TITLES = { score: "Scores", label: "Labels", length: "Tokens of query and product", unknown_tokens: "Share of unknown tokens" };
const READINGS = { stable: "stable", look: "worth a look", changed: "changed", "too few pairs": "too few pairs to tell" };
const copy = (name) => $(name).content.firstElementChild.cloneNode(true);
const whole = (count) => count.toLocaleString("en").replaceAll(",", "\u2009");
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

function binRow(bin, largest) {
  const row = copy("bin");
  const [name, bars, reference, served] = row.children;
  name.textContent = bin.name;
  bars.children[0].style.setProperty("--share", `${(100 * bin.reference) / largest}%`);
  bars.children[1].style.setProperty("--share", `${(100 * bin.served) / largest}%`);
  reference.textContent = percent(bin.reference);
  served.textContent = percent(bin.served);
  return row;
}

function quantitySection(found) {
  const section = copy("quantity");
  section.querySelector("h3").textContent = TITLES[found.quantity] ?? found.quantity;
  const chip = section.querySelector(".chip");
  chip.textContent = READINGS[found.reading] ?? found.reading;
  chip.classList.add(found.reading.split(" ")[0]);
  section.querySelector(".psi").textContent =
    found.psi === null ? "Nothing was scored yet." : `PSI ${found.psi.toFixed(3)}; chance alone may give ${found.chance.toFixed(3)}.`;
  const largest = Math.max(...found.bins.flatMap((bin) => [bin.reference, bin.served]), 0.01);
  section.querySelector("tbody").append(...found.bins.map((bin) => binRow(bin, largest)));
  return section;
}

function modelArticle(found, replica) {
  const article = copy("model");
  article.querySelector("h2").textContent = found.model;
  article.querySelector(".facts").textContent =
    `The latest ${whole(found.pairs)} pairs that replica ${replica} scored, beside ${whole(found.reference_pairs)} pairs of the dev split.`;
  article.querySelector(".quantities").append(...found.quantities.map(quantitySection));
  return article;
}

async function show() {
  const token = sessionStorage.getItem(KEY);
  const answer = await fetch("v1/drift", { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  if (answer.status === 401) throw new Error("This service asks for a token. Give it on the playground first, and come back in the same tab.");
  if (!answer.ok) throw new Error(`The service answered ${answer.status}.`);
  const { replica, models } = await answer.json();
  $("models").append(...models.map((model) => modelArticle(model, replica)));
  $("status").textContent = models.length ? "" : "The export that answers does not say how it answered its dev split: an earlier version made it, or there was no dev split. Export it again to see the drift.";
  $("how").hidden = !models.length;
}

$("status").textContent = "Asking the service …";
show().catch((error) => { $("status").textContent = error.message; });
