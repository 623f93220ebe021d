"""Takes corrected labels back: a Label Studio export or a table becomes the file that `source.overrides` names."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import multimode
from typing import Any

from cluster.base.errors import UserError
from cluster.base.tables import rows_of
from cluster.base.whole_files import whole_file
from mpcot.audit.audit_data import JudgedRun
from mpcot.audit.label_studio import LABEL
from mpcot.pairs.overrides import FIELD, identified, named, read_overrides
from mpcot.sources.clean_texts import clean_text
from mpcot.sources.open_source import cleaning_of

OVERRIDES = "overrides.jsonl"
WHERE = "--import"
NAMES = ("query", "product_id", "locale")
Row = dict[str, Any]


@dataclass
class Imported:
    """What became of the corrected pairs; `unknown` and `undecided` name those that were left out."""

    changed: int = 0
    confirmed: int = 0
    unknown: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)


def import_corrections(run: JudgedRun, given: Path, path: Path) -> Imported:
    """Write the corrected labels of `given` as overrides to `path`, beside those that are there already.

    Those are the rows of `path` or, if there is no such file, of the run's own `source.overrides`. Of several people's
    labels for one pair the most frequent one counts; without a single one the pair is left out.

    Raises:
        UserError: the file cannot be read, or has a label outside the scheme.
    """
    cleaning = cleaning_of(run.source, run.scheme)
    if given.suffix == ".json":
        rows = identified(_exported(given), cleaning, f"{WHERE}: {given}")
    else:
        rows = read_overrides(str(given), cleaning, WHERE)
    said: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        said[row["pair_id"]].append(row)
    pairs = {row["pair_id"]: row for row in rows_of(run.pairs, ["pair_id", "query", "product_id", "locale", "label"])}
    earlier = read_overrides(str(path), cleaning, FIELD) if path.is_file() else run.corrected()
    kept = {row["pair_id"]: {name: row[name] for name in ("pair_id", *NAMES, LABEL)} for row in earlier}
    done = Imported()
    for pair_id, votes in said.items():
        labels = multimode(row["label"] for row in votes)
        pair = pairs.get(pair_id)
        if pair is None:
            done.unknown.append(named(votes[0]))
        elif len(labels) > 1:
            done.undecided.append(f"{named(pair)} ({', '.join(sorted(labels))})")
        else:
            done.changed += labels[0] != pair["label"]
            done.confirmed += labels[0] == pair["label"]
            kept[pair_id] = {"pair_id": pair_id} | {name: pair[name] for name in NAMES} | {LABEL: labels[0]}
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept.values())
    return done


def _exported(path: Path) -> Iterator[Row]:
    """Yield a row per annotation of a Label Studio export, as JSON or as JSON-MIN. Skipped tasks have none.

    Raises:
        UserError: the file is not such an export.
    """
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{WHERE}: {path} cannot be read as JSON: {error}") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise UserError(f"{WHERE}: {path} is not a list of tasks. Export from Label Studio as JSON or JSON-MIN")
    for task in tasks:
        data = task.get("data", task)
        pair = {name: clean_text(data.get(name)) for name in ("pair_id", *NAMES)}
        for label in _labels(task):
            yield pair | {LABEL: clean_text(label)}


def _labels(task: Row) -> Iterator[Any]:
    if "annotations" not in task:  # JSON-MIN has one row per annotation
        if LABEL in task:
            yield task[LABEL]
        return
    for annotation in task["annotations"]:
        for result in annotation.get("result", ()):
            if result.get("from_name") == LABEL and not annotation.get("was_cancelled"):
                yield next(iter(result["value"].get("choices", ())), None)
