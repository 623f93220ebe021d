// Asks the service, with the token of this tab where it wants one.

const $ = (id) => document.getElementById(id);
const KEY = "broadfast token";

export class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

// Until somebody has pressed something, the page asks nobody for a token: it only says that one is needed.
let mayAsk = false;

export function allowAsking() {
  mayAsk = true;
}

// Returns what the service said, the milliseconds that it took from here, and those of the replica where it tells them.
export async function call(path, body, more = {}) {
  const token = sessionStorage.getItem(KEY);
  const headers = { Accept: "application/json", ...more };
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body) headers["Content-Type"] = "application/json";
  const started = performance.now();
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  if (answer.status === 401) {
    await unlock(Boolean(token));
    return call(path, body, more);
  }
  const said = await answer.json().catch(() => ({}));
  const ms = performance.now() - started;
  if (!answer.ok) throw new Refusal(answer.status, said.detail || `The service answered ${answer.status}.`);
  const told = /\breplica;dur=([\d.]+)/.exec(answer.headers.get("Server-Timing") ?? "");
  return { said, ms, replicaMs: told && Number(told[1]) };
}

let unlocking = null;

function unlock(wrong) {
  sessionStorage.removeItem(KEY);
  if (!mayAsk) {
    const why = wrong ? "The token of this tab is not known here any more." : "This service ranks only for those who have a token.";
    throw new Refusal(401, `${why} If you have one, enter it to go on.`);
  }
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
