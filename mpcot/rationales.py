"""Stages 2 and 4: the teacher writes rationales from every perspective, and filters decide which are kept.

Both stages ask in the same way. Stage 2 asks the teacher before its training, stage 4 asks it after SFT.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.base.ordered_tasks import in_tasks
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import table_writer
from mpcot.asking.answers import Answers, asked_figures
from mpcot.asking.failure_reasons import kind_of
from mpcot.asking.generate import generate, select_pairs
from mpcot.asking.hinted_retry import ask_with_hint
from mpcot.asking.join_answers import AnsweredPairs
from mpcot.asking.plan import GenerationPlan, model_asked
from mpcot.config import AskingStage, RationaleStage, SampleStage, SortedSettings
from mpcot.filters.chain import Chain, WellFormed
from mpcot.records import ANSWER, SORTED
from mpcot.votes import wanted_verdicts

OUTCOMES = ("kept", "filtered", "failed")


def run_rationales(config: RationaleStage, folder: StageFolder) -> None:
    """Stage 2: ask the untrained teacher, and write `2-rationales/{kept,filtered,failed}.parquet`."""
    model = model_asked(config.engine, config.teacher.model)
    _run(config, folder, model, config.rationales, "rationales")


def run_samples(config: SampleStage, folder: StageFolder) -> None:
    """Stage 4: ask the teacher after SFT, and write `4-samples/{kept,filtered,failed}.parquet`."""
    _run(config, folder, str((folder.input("3-sft") / "model").resolve()), config.samples, "samples")


def _run(config: AskingStage, folder: StageFolder, model: str, ask: SortedSettings, label: str) -> None:
    plan = GenerationPlan.of(config, model, ask)
    filters = Chain(ask.filters, plan.scheme, plan.perspectives)
    pairs = folder.input("1-pairs") / "pairs.parquet"
    rounds = [generate(plan, select_pairs(pairs, ask), folder.path, label)]
    retried = ask_with_hint(plan, rounds[0], pairs, folder.path, label) if ask.hinted_retry else None
    if retried is not None:
        rounds.append(retried[0])
    tally = write_outcomes(rounds, filters, folder)
    figures = tally.figures(rounds)
    if ask.hinted_retry:
        figures["hinted"] = tally.hinted_figures(retried[1] if retried else 0)
    folder.finish(tally.counts(rounds), figures | {"model": plan.model_digest})


def write_outcomes(rounds: Sequence[Answers], filters: Chain, folder: StageFolder) -> Tally:
    """Write `{kept,filtered,failed}.parquet`, some pairs at a time, and return what was counted on the way.

    Many pairs are sorted in Ray tasks, unless a filter compares those of one with those of another.
    """
    tally = Tally()
    spread = in_tasks if filters.pairs_apart else map
    with ExitStack() as files:
        writers = {
            kind: files.enter_context(table_writer(folder.path / f"{kind}.parquet", SORTED)) for kind in OUTCOMES
        }
        for answers in rounds:
            for parts in spread(partial(sort_out, filters=filters, hinted=answers.hinted), answers.by_pair()):
                tally.add(parts)
                for kind, table in parts.items():
                    writers[kind].write_table(table)
    return tally


def sort_out(joined: AnsweredPairs, filters: Chain, hinted: bool = False) -> dict[str, pa.Table]:
    """Sort answers into kept, filtered and failed ones, the last two with a reason. Every row goes to exactly one."""
    wanted = wanted_verdicts(joined, filters.scheme)
    answers = joined.answers
    known = dict(zip(joined.pairs["pair_id"].to_pylist(), joined.pairs["text"].to_pylist(), strict=True))
    reasons = answers["reason"].to_pylist()
    outcomes = []
    looked_at = (answers[name].to_pylist() for name in ("pair_id", "perspective", "rationale", "verdict"))
    for row, (pair_id, perspective, rationale, verdict) in enumerate(zip(*looked_at, strict=True)):
        failed = reasons[row] is not None
        if not failed:
            answer = WellFormed(pair_id, perspective, rationale, verdict, wanted[pair_id], hinted, known[pair_id])
            reasons[row] = filters.reason(answer)
        outcomes.append("failed" if failed else "filtered" if reasons[row] else "kept")
    weights = [wanted[pair_id].weight for pair_id in answers["pair_id"].to_pylist()]
    columns = {name: answers[name] for name in ANSWER.names} | {"reason": pa.array(reasons, pa.string())}
    columns |= {"hinted": pa.array([hinted] * len(answers), pa.bool_()), "weight": pa.array(weights, pa.float32())}
    table = pa.table(columns, SORTED)
    return {outcome: table.filter(pc.equal(pa.array(outcomes, pa.string()), outcome)) for outcome in OUTCOMES}


@dataclass
class Tally:
    """Counts answers by outcome, reason and perspective, and their tokens."""

    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    hinted: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)

    def add(self, parts: dict[str, pa.Table]) -> None:
        """Count more answers, sorted by outcome."""
        for outcome, table in parts.items():
            self.outcomes[outcome] += len(table)
            self.hinted[outcome] += pc.sum(table["hinted"]).as_py() or 0
            self.reasons.update(map(kind_of, table["reason"].drop_null().to_pylist()))
            for name in ("output_tokens", "prompt_tokens"):
                self.tokens[name] += pc.sum(table[name]).as_py() or 0
        self.kept.update(parts["kept"]["perspective"].to_pylist())

    def counts(self, rounds: Sequence[Answers]) -> dict[str, int]:
        """Return the ledger: requested = kept + filtered + failed."""
        requested = sum(answers.requested for answers in rounds)
        return {"requested": requested} | {outcome: self.outcomes[outcome] for outcome in OUTCOMES}

    def hinted_figures(self, pairs: int) -> dict[str, int]:
        """Return how many requests had a hint, about how many pairs, and how many of their answers were kept."""
        return {"pairs": pairs, "requested": self.hinted.total(), "kept": self.hinted["kept"]}

    def figures(self, rounds: Sequence[Answers]) -> dict[str, Any]:
        """Return the counts by reason and perspective, and what was asked and reused."""
        by_reason = {"reasons": dict(self.reasons), "kept_by_perspective": dict(self.kept)}
        return asked_figures(rounds) | by_reason | dict(self.tokens)
