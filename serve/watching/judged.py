"""What the teacher's votes say of the labels that were served, or that two exports give.

Shapes: N pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.base.errors import UserError
from cluster.base.tables import read_table, rows_of
from cluster.base.whole_files import disk_error
from distill.metrics import METRICS, bootstrap, confusion, kappa, paired_bootstrap, per_label
from mpcot.schemes.scheme import Scheme
from serve.config import ServeSettings
from serve.scoring.scorer import load_proven
from serve.watching.sample import SAMPLE

AT_A_TIME = 256  # pairs that are scored together


def votes_of(folder: Path) -> dict[str, str]:
    """Return the teacher's vote by pair, of the watch folder whose judgements are finished."""
    return {
        row["pair_id"]: row["vote"] for row in rows_of(folder / "7-judgements/judgements.parquet", ["pair_id", "vote"])
    }


def judged_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the sample that the teacher judged, each with its `vote`."""
    votes, sample = votes_of(folder), read_table(folder / SAMPLE).to_pylist()
    return [row | {"vote": votes[row["pair_id"]]} for row in sample if row["pair_id"] in votes]


def figures_of(folder: Path, scheme: Scheme, seed: int) -> dict[str, Any]:
    """Return how often the served labels are the teacher's votes, with 95 % intervals from resampled queries.

    Returns: `drawn`, `judged`, `queries`, `models`; `accuracy` and `macro_f1`, each with `value`, `low` and `high`;
        `kappa`; `confusion` (rows the vote, columns served, in the order of `labels`), `per_label`.
    """
    rows = judged_rows(folder)
    gold, served, queries = ([row[name] for row in rows] for name in ("vote", "served", "query_id"))
    return {
        "drawn": pq.read_metadata(folder / SAMPLE).num_rows,
        "judged": len(rows),
        "queries": len(set(queries)),
        "models": sorted({row["model"] for row in rows}),
        **{metric: bootstrap(gold, served, queries, scheme, metric, seed=seed) for metric in METRICS},
        "kappa": kappa(gold, served),
        "labels": list(scheme.codes),
        "confusion": confusion(gold, served, scheme).tolist(),
        "per_label": per_label(gold, served, scheme),
    }


def append_line(path: Path, line: Mapping[str, Any]) -> bool:
    """Append a line of JSON to the series, unless it has one of the same `folder`; say whether it was appended.

    Raises:
        UserError: the disk is full or read-only.
    """
    known = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if any(json.loads(each)["folder"] == line["folder"] for each in known):
        return False
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        raise disk_error(error, path) from error
    return True


def labels_by(export: Path, pairs: Sequence[Mapping[str, Any]], scheme: Scheme) -> list[str]:
    """Return the labels that an export gives to N pairs, on the CPUs of this machine.

    Raises:
        UserError: it is not an export, its labels are not those of the scheme, or its scores are not numbers.
    """
    scorer = load_proven(export, ServeSettings())
    codes = scorer.config.scheme.codes
    if codes != scheme.codes:
        raise UserError(
            f"{export} gives the labels {', '.join(codes)}, and the teacher {', '.join(scheme.codes)}: name another"
            " run, or roll without --judge."
        )
    found: list[str] = []
    for start in range(0, len(pairs), AT_A_TIME):
        found += [codes[n] for n in scorer.score(pairs[start : start + AT_A_TIME]).probabilities.argmax(1)]
    return found


def compared(folder: Path, before: Path, after: Path, scheme: Scheme, seed: int) -> dict[str, Any]:
    """Return the accuracy of `after` minus that of `before` on the judged pairs, as `paired_bootstrap` does."""
    rows = judged_rows(folder)
    gold, queries = ([row[name] for row in rows] for name in ("vote", "query_id"))
    first, second = (labels_by(export, rows, scheme) for export in (before, after))
    return paired_bootstrap(gold, first, second, queries, scheme, seed=seed) | {"pairs": len(rows)}
