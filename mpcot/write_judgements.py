"""Writes the judgements of a run in the form that `source.judgements` of another run reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.base.run_folder import finished_stage, saved_config
from cluster.base.tables import read_table, rows_of
from cluster.base.whole_files import whole_file
from mpcot.judgements import TEACHER
from mpcot.schemes.scheme import load_scheme

PAIR_COLUMNS = ["pair_id", "query", "product_id", "locale"]
DIGITS = 6  # as many as a float32 has


def write_judgements(run_dir: Path, path: Path) -> Counter[str]:
    """Write one line of jsonl for each pair and perspective that has a verdict, and return how many by their origin.

    What the run's own teacher said gets the last part of its name as origin.

    Raises:
        UsageError: this is no run folder, or its judgements are not finished.
        UserError: the disk is full, read-only or closed to this user.
    """
    config = saved_config(run_dir)
    stage = finished_stage(run_dir, "7-judgements", upto="judgements")
    codes, names = load_scheme(config["labels"]["scheme"]).codes, config["perspectives"]["names"]
    teacher = Path(config["teacher"]["model"]).name or TEACHER
    pairs = {row.pop("pair_id"): row for row in read_table(run_dir / "1-pairs/pairs.parquet", PAIR_COLUMNS).to_pylist()}
    counts: Counter[str] = Counter()
    with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for row in rows_of(stage / "judgements.parquet"):
            for said in _lines(row, names, codes):
                origin = teacher if said["origin"] == TEACHER else said["origin"]
                line = pairs[row["pair_id"]] | said | {"origin": origin}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                counts[origin] += 1
    return counts


def _lines(row: Mapping[str, Any], names: list[str], codes: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield what each perspective that has a verdict said, or what was said of the pair as a whole."""
    if not any(row["verdicts"]):
        yield {"verdict": row["vote"], "probabilities": _shares(codes, row["soft"]), "origin": row["origin"][0]}
    origins = row.get("origin") or [TEACHER] * len(names)  # runs of an earlier version have none
    columns = (names, row["rationales"], row["verdicts"], row["perspective_soft"], origins)
    for name, rationale, verdict, soft, origin in zip(*columns, strict=True):
        if verdict is not None:
            shares = _shares(codes, soft)
            said = {"perspective": name, "rationale": rationale, "verdict": verdict, "probabilities": shares}
            yield said | {"origin": origin}


def _shares(codes: tuple[str, ...], soft: Iterable[float]) -> dict[str, float]:
    return {code: round(share, DIGITS) for code, share in zip(codes, soft, strict=True)}
