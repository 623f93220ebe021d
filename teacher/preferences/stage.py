"""Stage 5: preference pairs from the answers of stage 4, with the reference model's log-probabilities as columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.base.errors import UserError
from cluster.base.sql import Database, Ordered, database, scan
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import conformed, write_table
from mpcot.asking.prompts import answer
from mpcot.audit.disputes import find_disputes
from mpcot.judgements import judge_pairs
from mpcot.perspectives.perspective import JOINT, joint, load_perspectives
from mpcot.records import NOT_GOLD, PAIR, PREFERENCE, SEED
from mpcot.schemes.scheme import load_scheme
from teacher.config import PreferenceStage
from teacher.examples import prompt_of
from teacher.fitting import Fitting
from teacher.model import load_tokenizer
from teacher.preferences.conflicts import Candidate, Preference, all_conflicts, gold_probability, limited
from teacher.preferences.reference_logprobs import SIDES, score_preferences

Row = dict[str, Any]
ANSWER_COLUMNS = ["pair_id", "perspective", "sample", "rationale", "verdict", "logprobs", "reason", "hinted"]


def run(config: PreferenceStage, folder: StageFolder) -> None:
    """Write `5-preferences/preferences.parquet`."""
    seen = _Conflicts(config)
    with database(folder.path) as data:
        seen.read(data, folder)
        found = limited(seen.found, seen.gold, config.preferences, config.seed)
        pairs = _pairs_of(data, folder.input("1-pairs"), {p.chosen.pair_id for p in found})
    gold = {pair_id: pair["label"] for pair_id, pair in pairs.items()}
    if not found and config.preferences.when_empty == "stop":
        raise UserError(
            f"preferences: there is nothing to prefer: {seen.right} of {seen.answers} answers are right, and none of "
            "them shares a pair with a wrong one. Raise samples.samples or samples.temperature, or go on without DPO "
            'by preferences.when_empty = "skip".'
        )
    model = str((folder.input("3-sft") / "model").resolve())
    fitting = Fitting(load_tokenizer(model), config.dpo.max_tokens)
    table = preference_table(found, pairs, config, fitting)
    fits = set(table["preference_id"].to_pylist())
    found = [preference for preference in found if preference.id in fits]
    if len(table):
        table = score_preferences(table, model, config, folder.path)
    write_table(folder.path / "preferences.parquet", table)
    splits = {s: sum(pairs[p.chosen.pair_id]["split"] == s for p in found) for s in ("train", "dev")}
    counts = {"preferences": len(table), "pairs_in_conflict": len({p.chosen.pair_id for p in found}), **splits}
    figures = {
        "cross_perspective": sum(p.chosen.perspective != p.rejected.perspective for p in found),
        "labels": dict(Counter(gold[p.chosen.pair_id] for p in found)),
        "chosen_perspectives": dict(Counter(p.chosen.perspective for p in found)),
        "rejected_perspectives": dict(Counter(p.rejected.perspective for p in found)),
        "left_out": dict(fitting.left_out),
        "cut": dict(fitting.cut),
        "disputed_pairs": seen.disputed,
    }
    folder.finish(counts, figures)


class _Conflicts:
    """Finds the preferences of all pairs, of which only some are in memory; `gold` has the labels of those in conflict.

    Args:
        answers: how many samples may be chosen or rejected, of which so many are `right`.
        disputed: how many pairs are passed over because their gold label is disputed.
    """

    def __init__(self, config: PreferenceStage) -> None:
        self.config, self.scheme = config, load_scheme(config.labels.scheme)
        self.found: list[Preference] = []
        self.gold: dict[str, str | None] = {}
        self.answers = self.right = self.disputed = 0

    def read(self, data: Database, folder: StageFolder) -> None:
        """Look at the samples pair by pair, and at answers from elsewhere as `preferences.fallback` says."""
        files = [folder.input("4-samples") / f"{name}.parquet" for name in ("kept", "filtered")]
        pairs, elsewhere = folder.input("1-pairs"), self.config.preferences.fallback
        known = f"pair_id IN (SELECT pair_id FROM {scan(*files)})"
        labels = data.in_order([pairs / "pairs.parquet"], "pair_id", ["pair_id", "label"], known)
        samples = data.in_order(files, "pair_id", ANSWER_COLUMNS)
        kept = [folder.input("2-rationales") / "kept.parquet"] if "rationales" in elsewhere else []
        first = data.in_order(kept, "pair_id", ANSWER_COLUMNS, known) if kept else Ordered((), "pair_id")
        given = [pairs / "seeds.parquet"] if "seeds" in elsewhere else []
        seeds = data.in_order(given, "pair_id", SEED.names, known) if given else Ordered((), "pair_id")
        for batches, last in labels.chunks():
            gold = {row["pair_id"]: row["label"] for batch in batches for row in batch.to_pylist()}
            fallback = [*self._candidates(rows_of(first.upto(last)), gold)]
            fallback += seed_candidates(rows_of(seeds.upto(last)), self.config.perspectives.names)
            self._add(rows_of(samples.upto(last)), fallback, gold)

    def _add(self, rows: list[Row], fallback: list[Candidate], gold: dict[str, str | None]) -> None:
        config = self.config
        samples = list(self._candidates(rows, gold))
        disputed = disputed_pairs(rows, gold, config) if config.preferences.skip_disputed else set()
        samples = [c for c in samples if c.pair_id not in disputed or c.verdict == gold[c.pair_id]]
        found = all_conflicts(samples, fallback, gold, config.preferences, config.seed)
        self.found += found
        self.gold |= {p.chosen.pair_id: gold[p.chosen.pair_id] for p in found}
        self.answers += len(samples)
        self.right += sum(gold[c.pair_id] == c.verdict for c in samples)
        self.disputed += len(disputed)

    def _candidates(self, rows: list[Row], gold: Mapping[str, str | None]) -> Iterator[Candidate]:
        """Yield the answers that may be chosen or rejected."""
        for row in rows:
            label = gold.get(row["pair_id"])
            # A hint gives the label away. So a wrong answer to a prompt with one says nothing about the prompt
            # without it, and neither does the probability of the label.
            if label is None or row["reason"] not in (None, NOT_GOLD) or (row["hinted"] and row["reason"] is not None):
                continue
            sure = None if row["hinted"] else gold_probability(row["logprobs"], label, self.scheme)
            yield Candidate(**{name: row[name] for name in ANSWER_COLUMNS[:5]}, gold_probability=sure)


def rows_of(batches: list[pa.RecordBatch]) -> list[Row]:
    """Return batches as rows."""
    return [row for batch in batches for row in batch.to_pylist()]


def _pairs_of(data: Database, pairs: Path, wanted: set[str]) -> dict[str, Row]:
    """Return some pairs by their ids."""
    ids = pa.table([sorted(wanted)], schema=pa.schema([("pair_id", pa.string())]))
    query = f"SELECT {', '.join(PAIR.names)} FROM {scan(pairs / 'pairs.parquet')} SEMI JOIN wanted USING (pair_id)"
    found = conformed(list(data.stream(query, wanted=ids)), PAIR)
    return {row["pair_id"]: row for row in found.to_pylist()}


def disputed_pairs(rows: list[Row], gold: Mapping[str, str | None], config: PreferenceStage) -> set[str]:
    """Return the pairs whose gold label the samples of all perspectives dispute with confidence."""
    scheme = load_scheme(config.labels.scheme)
    # A verdict that is not gold is no reason to pass over an answer here: it is what a dispute is made of.
    usable = [row | {"reason": None} for row in rows if not row["hinted"] and row["reason"] in (None, NOT_GOLD)]
    judged = judge_pairs(usable, config.perspectives.names, scheme)
    return {dispute.pair_id for dispute in find_disputes(judged, gold, scheme).found}


def seed_candidates(rows: list[Row], perspectives: Sequence[str]) -> Iterator[Candidate]:
    """Yield the seed rationales of the perspectives that the run asks from; others have no prompt."""
    for row in rows:
        if row["perspective"] in perspectives:
            said = {name: row[name] for name in ("pair_id", "perspective", "rationale", "verdict")}
            yield Candidate(**said, sample=-1, gold_probability=None)


def preference_table(
    found: list[Preference], pairs: dict[str, Any], config: PreferenceStage, fitting: Fitting
) -> pa.Table:
    """Return the preferences as text; their reference log-probabilities are still empty.

    Both prompts are shortened to what fits beside the longer answer. A preference of which one side cannot fit is left
    out.
    """
    asked = load_perspectives(config.perspectives)
    perspectives = {p.name: p for p in (joint(asked), *asked)}
    write = partial(prompt_of, fitting.tokenizer, load_scheme(config.labels.scheme), config.samples)

    rows = []
    for p in found:
        row = {"preference_id": p.id, "pair_id": p.chosen.pair_id, "split": pairs[p.chosen.pair_id]["split"]}
        asked_about = []
        for side, candidate in zip(SIDES, (p.chosen, p.rejected), strict=True):
            row[f"{side}_perspective"] = candidate.perspective
            row[side] = answer(candidate.rationale, candidate.verdict)
            # Equation 7 of DPO follows only for one prompt, which all but `own` ask for.
            question = {"own": candidate.perspective, "rejected": p.rejected.perspective, "joint": JOINT}
            asked_about.append((row[side], partial(write, perspectives[question[config.preferences.prompt]])))
        prompts = fitting.prompts(pairs[p.chosen.pair_id], asked_about)
        if None in prompts:
            continue
        row |= {f"{side}_prompt": prompt for side, prompt in zip(SIDES, prompts, strict=True)}
        rows.append(row)
    return pa.Table.from_pylist(rows, PREFERENCE)
