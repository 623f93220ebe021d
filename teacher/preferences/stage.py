"""Stage 5: preference pairs from the answers of stage 4, with the reference model's log-probabilities as columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import read_table, write_table
from mpcot.asking.prompts import answer
from mpcot.audit.disputes import find_disputes
from mpcot.judgements import judge_pairs
from mpcot.perspectives.perspective import JOINT, joint, load_perspectives
from mpcot.records import NOT_GOLD, PREFERENCE
from mpcot.schemes.scheme import load_scheme
from teacher.config import PreferenceStage
from teacher.fitting import Fitting
from teacher.model import load_tokenizer
from teacher.preferences.conflicts import Candidate, Preference, conflicts, gold_probability
from teacher.preferences.reference_logprobs import SIDES, score_preferences
from teacher.sft import prompt_of

ANSWER_COLUMNS = ["pair_id", "perspective", "sample", "rationale", "verdict", "logprobs", "reason", "hinted"]


def run(config: PreferenceStage, folder: StageFolder) -> None:
    """Write `5-preferences/preferences.parquet`."""
    pairs = {p["pair_id"]: p for p in read_table(folder.input("1-pairs") / "pairs.parquet").to_pylist()}
    gold = {pair_id: pair["label"] for pair_id, pair in pairs.items()}
    samples = list(candidates(folder.input("4-samples"), ("kept", "filtered"), gold, config))
    disputed: set[str] = (
        disputed_pairs(folder.input("4-samples"), gold, config) if config.preferences.skip_disputed else set()
    )
    samples = [c for c in samples if c.pair_id not in disputed or c.verdict == gold[c.pair_id]]
    found = conflicts(samples, fallback_candidates(config, folder, gold), gold, config.preferences, config.seed)
    if not found and config.preferences.when_empty == "stop":
        right = sum(gold[c.pair_id] == c.verdict for c in samples)
        raise UserError(
            f"preferences: there is nothing to prefer: {right} of {len(samples)} answers are right, and none of them "
            "shares a pair with a wrong one. Raise samples.samples or samples.temperature, or go on without DPO by "
            'preferences.when_empty = "skip".'
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
        "disputed_pairs": len(disputed),
    }
    folder.finish(counts, figures)


def candidates(
    stage: Path, files: tuple[str, ...], gold: dict[str, Any], config: PreferenceStage
) -> Iterator[Candidate]:
    """Yield the answers of a generation stage that may be chosen or rejected."""
    scheme = load_scheme(config.labels.scheme)
    for name in files:
        for row in read_table(stage / f"{name}.parquet", ANSWER_COLUMNS).to_pylist():
            label = gold[row["pair_id"]]
            logprobs, reason, hinted = row.pop("logprobs"), row.pop("reason"), row.pop("hinted")
            # A hint gives the label away. So a wrong answer to a prompt with one says nothing about the prompt
            # without it, and neither does the probability of the label.
            if label is None or reason not in (None, NOT_GOLD) or (hinted and reason is not None):
                continue
            row["gold_probability"] = None if hinted else gold_probability(logprobs, label, scheme)
            yield Candidate(**row)


def disputed_pairs(stage: Path, gold: dict[str, Any], config: PreferenceStage) -> set[str]:
    """Return the pairs whose gold label the samples of all perspectives dispute with confidence."""
    scheme = load_scheme(config.labels.scheme)
    columns = [name for name in ANSWER_COLUMNS if name != "hinted"]
    tables = [read_table(stage / f"{name}.parquet") for name in ("kept", "filtered")]
    rows = pa.concat_tables(table.filter(pc.invert(table["hinted"])).select(columns) for table in tables)
    rows = rows.filter(pc.or_kleene(pc.is_null(rows["reason"]), pc.equal(rows["reason"], NOT_GOLD)))
    # A verdict that is not gold is no reason to pass over an answer here: it is what a dispute is made of.
    rows = rows.set_column(rows.column_names.index("reason"), "reason", pa.nulls(len(rows), pa.string()))
    judged = judge_pairs(rows.to_pylist(), config.perspectives.names, scheme)
    return {dispute.pair_id for dispute in find_disputes(judged, gold, scheme).found}


def fallback_candidates(config: PreferenceStage, folder: StageFolder, gold: dict[str, Any]) -> Iterator[Candidate]:
    """Yield right answers from elsewhere, for pairs that no sample got right, as `preferences.fallback` says."""
    if "rationales" in config.preferences.fallback:
        yield from candidates(folder.input("2-rationales"), ("kept",), gold, config)
    if "seeds" in config.preferences.fallback:
        yield from seed_candidates(folder.input("1-pairs"), config.perspectives.names)


def seed_candidates(pairs: Path, perspectives: Sequence[str]) -> Iterator[Candidate]:
    """Yield the seed rationales of the perspectives that the run asks from; others have no prompt."""
    for row in read_table(pairs / "seeds.parquet").to_pylist():
        row.pop("origin")
        if row["perspective"] in perspectives:
            yield Candidate(**row, sample=-1, gold_probability=None)


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
