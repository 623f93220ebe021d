"""Gathers the disputed pairs of a run into one plain dict, for the terminal, the page and Label Studio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from cluster.base.run_folder import finished_stage, saved_config
from cluster.base.tables import batches_of, rows_of
from mpcot.audit.disputes import COLUMNS, Dispute, find_disputes
from mpcot.config import PerspectiveSettings
from mpcot.details import details
from mpcot.pairs.overrides import read_overrides
from mpcot.schemes.scheme import Scheme, load_scheme
from mpcot.sources.config import SourceSettings
from mpcot.sources.open_source import cleaning_of

SHOWN = ("pair_id", "product_id", "locale", "query", "title", "brand", "split", "ratings")
DETAILS = ("attributes", "description", "bullets")
Row = dict[str, Any]


@dataclass(frozen=True)
class JudgedRun:
    """A run whose teacher has judged."""

    name: str
    model: str
    scheme: Scheme
    perspectives: tuple[str, ...]
    source: SourceSettings
    pairs: Path
    judgements: Path

    @classmethod
    def open(cls, run_dir: Path) -> JudgedRun:
        """Return the run in a folder.

        Raises:
            UsageError: this is no run folder, or stage 7 has not finished.
        """
        config = saved_config(run_dir)
        pairs, judged = (finished_stage(run_dir, stage, upto="judgements") for stage in ("1-pairs", "7-judgements"))
        return cls(
            name=config["name"],
            model=config["teacher"]["model"] or "source.judgements",  # nobody else may have been asked
            scheme=load_scheme(config["labels"]["scheme"]),
            perspectives=PerspectiveSettings(**config["perspectives"]).names,
            source=TypeAdapter[SourceSettings](SourceSettings).validate_python(config["source"]),
            pairs=pairs / "pairs.parquet",
            judgements=judged / "judgements.parquet",
        )

    def corrected(self) -> list[Row]:
        """Return the corrected labels that the run was made with."""
        path = self.source.overrides
        return read_overrides(path, cleaning_of(self.source, self.scheme)) if path else []


def collect(run: JudgedRun, top: int, least: float) -> dict[str, Any]:
    """Return the `top` disputed pairs with their texts and rationales, and the counts of all.

    Pairs whose label people have already looked at (`source.overrides` of the run) are left out, and counted.

    Args:
        least: the least score of a dispute.
    """
    gold = {row["pair_id"]: row["label"] for row in rows_of(run.pairs, ["pair_id", "label"]) if row["label"]}
    looked_at = gold.keys() & {row["pair_id"] for row in run.corrected()}
    unseen = {pair_id: label for pair_id, label in gold.items() if pair_id not in looked_at}
    disputes = find_disputes(rows_of(run.judgements, COLUMNS), unseen, run.scheme, least)
    return {
        "name": run.name,
        "model": run.model,
        "scheme": run.scheme.model_dump(mode="json"),
        "perspectives": list(run.perspectives),
        "least": least,
        "counts": {"gold": len(gold), "looked_at": len(looked_at), **disputes.counts},
        "confusion": _confusion(disputes.found, run.scheme),
        "disputes": _with_texts(disputes.found[:top], run),
    }


def _confusion(found: Iterable[Dispute], scheme: Scheme) -> dict[str, list[int]]:
    """Return by gold label how many disputes there are for each label, in the order of the scheme."""
    counts = Counter((one.gold, one.verdict) for one in found)
    return {code: [counts[code, other] for other in scheme.codes] for code in scheme.codes}


def _with_texts(shown: list[Dispute], run: JudgedRun) -> list[Row]:
    ids = [one.pair_id for one in shown]
    texts = _rows_by_id(run.pairs, [*SHOWN, *DETAILS], ids)
    judged = _rows_by_id(run.judgements, ["pair_id", "rationales"], ids)
    return [
        {name: texts[one.pair_id].get(name) for name in SHOWN}
        | {"details": details(texts[one.pair_id]), "gold": one.gold, "verdict": one.verdict, "score": one.score}
        | {"rationales": dict(zip(run.perspectives, judged[one.pair_id]["rationales"], strict=True))}
        for one in shown
    ]


def _rows_by_id(path: Path, columns: list[str], ids: list[str]) -> dict[str, Row]:
    wanted = pa.array(ids, pa.string())
    batches = (batch.filter(pc.is_in(batch["pair_id"], wanted)) for batch in batches_of(path, columns))
    return {row["pair_id"]: row for batch in batches for row in batch.to_pylist()}
