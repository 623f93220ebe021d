// What was ranked, as the part of the address behind #, which browsers send to no server.

// Keys: q the query, p a product of one's own, t a title from the training data, arms the arms that were asked.
export function fragment({ query, titles, own, arms }) {
  const parts = new URLSearchParams({ q: query });
  for (const title of titles) parts.append(own ? "p" : "t", title);
  if (arms) parts.set("arms", arms.join(","));
  return `#${parts}`;
}

export function parsed(hash) {
  const parts = new URLSearchParams(hash.slice(1));
  const own = parts.getAll("p");
  return {
    query: (parts.get("q") ?? "").trim(),
    titles: own.length ? own : parts.getAll("t"),
    own: own.length > 0,
    arms: parts.get("arms")?.split(",") ?? null,
  };
}
