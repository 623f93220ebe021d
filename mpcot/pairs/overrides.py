"""Labels that people have corrected. With `source.overrides` they take the place of the source's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from cluster.base.errors import UserError
from mpcot.pairs.ids import pair_id
from mpcot.records import texts
from mpcot.sources.clean_rows import Cleaning
from mpcot.sources.clean_texts import clean_text
from mpcot.sources.delimited import PARSE_ERROR

FIELD = "source.overrides"
NAMED = 20  # left out pairs that figures name
OVERRIDE = pa.schema(texts("pair_id?", "query?", "product_id?", "locale?", "label?", "error?"))
Row = dict[str, Any]


def read_overrides(path: str, cleaning: Cleaning, field: str = FIELD) -> list[Row]:
    """Read a file with a `label`, and either a `pair_id` or `query` and `product_id` (and `locale`), in each row.

    Returns: rows of `pair_id`, `query`, `product_id`, `locale` and `label`; the label is a code of the scheme.

    Raises:
        UserError: the file cannot be read, a column or a field is missing, or a label is not in the scheme.
    """
    from mpcot.sources.filesets import collect, find  # loads pyarrow's file systems, which few runs need here

    files = find(path, field=field)
    files.need(["label"] if "pair_id" in files.columns else ["query", "product_id", "label"], field)
    rows = collect(files, _to_rows, OVERRIDE.names).to_pylist()
    return identified(rows, cleaning, f"{field}: {path}")


def _to_rows(batch: list[Row]) -> pa.Table:
    rows = [{name: clean_text(raw.get(name)) for name in OVERRIDE.names} for raw in batch]
    for row, raw in zip(rows, batch, strict=True):
        row["error"] = raw.get(PARSE_ERROR)
    return pa.Table.from_pylist(rows, schema=OVERRIDE)


def identified(rows: Iterable[Row], cleaning: Cleaning, where: str) -> list[Row]:
    """Return the rows that have a label, with the id of their pair and with that label as a code of the scheme.

    Raises:
        UserError: names the first rows with neither an id nor a query and a product, or with another label.
    """
    found: list[Row] = []
    wrong: list[str] = []
    for number, row in enumerate(rows, start=1):
        label = cleaning.verdict_of(row["label"])
        if label is None and not row.get("error"):
            continue  # people need not look at every row
        known = row["pair_id"] or (row["query"] and row["product_id"])
        if row.get("error") or not known or label not in cleaning.codes:
            wrong.append(f"row {number} ({named(row) if known else row.get('error') or 'no pair'}): label {label!r}")
            continue
        locale = (row["locale"] or cleaning.default_locale).lower()
        own = row["pair_id"] or pair_id(locale, row["query"], row["product_id"])
        found.append({**row, "pair_id": own, "locale": locale, "label": label})
    if wrong:
        raise UserError(
            f"{where}: {len(wrong)} rows cannot be used, first {'; '.join(wrong[:3])}. Each needs a pair_id, or query "
            f"and product_id, and a label of {', '.join(cleaning.codes)}. Correct them"
        )
    return found


def named(row: Mapping[str, Any]) -> str:
    """Return a pair as messages name it."""
    return f"{row['query']!r}, product {row['product_id']}" if row["query"] else f"pair {row['pair_id']}"


class Corrections:
    """Puts corrected labels in the place of the source's own, and tells what became of them.

    Raises:
        UserError: a pair has two corrected labels.
    """

    def __init__(self, overrides: list[Row]) -> None:
        self.overrides, self.labels = overrides, _labels(overrides)
        self.kinds: dict[str, str] = {}

    def apply(self, pair_ids: Sequence[str | None], labels: Sequence[str | None]) -> list[str | None]:
        """Return the labels of rows after correction. A row without an id has failed already."""
        return [
            label if pair not in self.labels else self._corrected(pair, label)
            for pair, label in zip(pair_ids, labels, strict=True)
        ]

    def _corrected(self, pair: str, before: str | None) -> str:
        label = self.labels[pair]
        if self.kinds.get(pair) != "changed":
            self.kinds[pair] = "unchanged" if before == label else "changed"
        return label

    def figures(self) -> dict[str, Any]:
        """Return what became of the corrections, once all rows have been corrected.

        Returns: `changed` and `unchanged` count pairs, `unknown` those that no good row has; `named` are the first of
        them.

        Raises:
            UserError: none of the corrected pairs is in the source.
        """
        unknown = [row for row in self.overrides if row["pair_id"] not in self.kinds]
        if unknown and not self.kinds:
            raise UserError(
                f"{FIELD}: none of the {len(self.labels)} pairs is in the source, the first is {named(unknown[0])}. "
                "Look at its locale, or take the setting out"
            )
        counts = Counter(self.kinds.values())
        return {
            "changed": counts["changed"],
            "unchanged": counts["unchanged"],
            "unknown": len({row["pair_id"] for row in unknown}),
            "named": [named(row) for row in unknown[:NAMED]],
        }


def _labels(overrides: Iterable[Row]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for row in overrides:
        if labels.setdefault(row["pair_id"], row["label"]) != row["label"]:
            both = f"{labels[row['pair_id']]} and {row['label']}"
            raise UserError(f"{FIELD}: {named(row)} has the labels {both}. Keep one of them")
    return labels
