"""Stages 2 and 4: rationales from every perspective, kept where the verdict is the gold label.

Both stages ask in the same way; stage 2 asks the teacher as it came, stage 4 the one after SFT.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.base.stage_folder import StageFolder
from cluster.base.tables import table_writer
from cluster.models.folders import check_model, model_fingerprint
from mpcot.asking.answers import Answers, asked_figures
from mpcot.asking.failure_reasons import kind_of
from mpcot.asking.generate import generate, select_pairs
from mpcot.asking.hinted_retry import ask_with_hint
from mpcot.asking.join_answers import Shelf
from mpcot.asking.plan import GenerationPlan
from mpcot.config import RationaleStage, SampleStage, SortedSettings
from mpcot.filters.chain import Chain, Said
from mpcot.perspectives.perspective import load_perspectives
from mpcot.records import SORTED
from mpcot.schemes.scheme import load_scheme
from mpcot.votes import wanted_verdicts

OUTCOMES = ("kept", "filtered", "failed")


def run_rationales(config: RationaleStage, folder: StageFolder) -> None:
    """Stage 2: the teacher as it came writes `2-rationales/{kept,filtered,failed}.parquet`."""
    model = check_model("teacher.model", config.teacher.model)
    _run(config, folder, model, config.rationales, "rationales")


def run_samples(config: SampleStage, folder: StageFolder) -> None:
    """Stage 4: the SFT teacher writes `4-samples/{kept,filtered,failed}.parquet`."""
    _run(config, folder, str((folder.input("3-sft") / "model").resolve()), config.samples, "samples")


def _run(
    config: RationaleStage | SampleStage, folder: StageFolder, model: str, ask: SortedSettings, label: str
) -> None:
    plan = GenerationPlan(
        model=model,
        model_digest=model_fingerprint(model),
        engine=config.engine,
        scheme=load_scheme(config.labels.scheme),
        perspectives=load_perspectives(config.perspectives),
        ask=ask,
        seed=config.seed,
    )
    filters = Chain(ask.filters, plan.scheme)
    pairs = folder.input("1-pairs") / "pairs.parquet"
    rounds = [generate(plan, select_pairs(pairs, ask), folder.path, label)]
    retried = ask_with_hint(plan, rounds[0], pairs, folder.path, label) if ask.hinted_retry else None
    if retried is not None:
        rounds.append(retried[0])
    tally = write_outcomes(rounds, filters, folder)
    figures = tally.figures(rounds)
    if ask.hinted_retry:
        figures["hinted"] = tally.hinted_figures(retried[1] if retried else 0)
    folder.finish(tally.counts(rounds), figures | {"model": model_fingerprint(model)})


def write_outcomes(rounds: Sequence[Answers], filters: Chain, folder: StageFolder) -> Tally:
    """Write `{kept,filtered,failed}.parquet` shelf by shelf and return what was counted on the way."""
    tally = Tally()
    with ExitStack() as files:
        writers = {
            kind: files.enter_context(table_writer(folder.path / f"{kind}.parquet", SORTED)) for kind in OUTCOMES
        }
        for answers in rounds:
            for shelf in answers.shelves():
                parts = sort_out(shelf, filters, answers.hinted)
                tally.add(parts)
                for kind, table in parts.items():
                    writers[kind].write_table(table)
    return tally


def sort_out(shelf: Shelf, filters: Chain, hinted: bool = False) -> dict[str, pa.Table]:
    """Deal answers to kept, filtered and failed, each with its reason; every row goes to exactly one."""
    wanted = wanted_verdicts(shelf, filters.scheme)
    answers = shelf.answers
    reasons = answers["reason"].to_pylist()
    outcome = ["failed" if reason else "kept" for reason in reasons]
    columns = (answers[name].to_pylist() for name in ("pair_id", "perspective", "rationale", "verdict"))
    for place, (pair_id, perspective, rationale, verdict) in enumerate(zip(*columns, strict=True)):
        if outcome[place] == "failed":
            continue
        reasons[place] = filters.reason(Said(pair_id, perspective, rationale, verdict, wanted[pair_id], hinted))
        outcome[place] = "filtered" if reasons[place] else "kept"
    place = answers.schema.get_field_index("reason")
    answers = answers.set_column(place, SORTED.field("reason"), pa.array(reasons, pa.string()))
    answers = answers.append_column(SORTED.field("hinted"), pa.array([hinted] * len(answers), pa.bool_()))
    weights = [wanted[pair_id].weight for pair_id in answers["pair_id"].to_pylist()]
    answers = answers.append_column(SORTED.field("weight"), pa.array(weights, pa.float32()))
    kinds = pa.array(outcome)
    return {kind: answers.filter(pc.equal(kinds, kind)) for kind in OUTCOMES}


@dataclass
class Tally:
    """Counts by outcome, reason and perspective, and sums of tokens, over all shelves."""

    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    hinted: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)

    def add(self, parts: dict[str, pa.Table]) -> None:
        """Count one shelf's outcome."""
        for kind, table in parts.items():
            self.outcomes[kind] += len(table)
            self.hinted[kind] += pc.sum(table["hinted"]).as_py() or 0
            for reason, count in _counted(table["reason"].drop_null()).items():
                self.reasons[kind_of(reason)] += count
            for name in ("output_tokens", "prompt_tokens"):
                self.tokens[name] += pc.sum(table[name]).as_py() or 0
        self.kept.update(_counted(parts["kept"]["perspective"]))

    def counts(self, rounds: Sequence[Answers]) -> dict[str, int]:
        """Return the ledger: requested = kept + filtered + failed."""
        return {"requested": sum(answers.requested for answers in rounds)} | {
            kind: self.outcomes[kind] for kind in OUTCOMES
        }

    def hinted_figures(self, pairs: int) -> dict[str, int]:
        """Return what the hinted retry asked, of how many pairs, and kept."""
        return {"pairs": pairs, "requested": self.hinted.total(), "kept": self.hinted["kept"]}

    def figures(self, rounds: Sequence[Answers]) -> dict[str, Any]:
        """Return the counts by reason and perspective, and what was asked and reused."""
        return {
            **asked_figures(rounds),
            "reasons": dict(self.reasons),
            "kept_by_perspective": dict(self.kept),
            **self.tokens,
        }


def _counted(values: pa.ChunkedArray) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in pc.value_counts(values).to_pylist()}
