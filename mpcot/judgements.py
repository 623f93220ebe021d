"""Stage 7: the teacher judges every pair. A judgement has a vote, soft labels, verdicts and rationales."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.base.ordered_tasks import in_tasks
from cluster.base.sql import database, scan
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import conformed, table_writer
from mpcot.asking.answers import Answers, asked_figures
from mpcot.asking.generate import generate, select_pairs
from mpcot.asking.join_answers import AnsweredPairs
from mpcot.asking.plan import GenerationPlan, model_asked
from mpcot.config import JudgeStage, UntunedJudgeStage
from mpcot.given import WHOLE, Given
from mpcot.pairs.given_judgements import GIVEN
from mpcot.records import ANSWER, JUDGEMENT, texts
from mpcot.schemes.scheme import Scheme, load_scheme
from mpcot.vote_fit import VoteFit, fit_vote
from mpcot.votes import distribution, majority, mean_distribution

TAKEN = pa.schema(texts("pair_id"))
TEACHER = "teacher"  # the origin of what this run's teacher said
NO_VERDICT = "-"  # stands for a missing verdict when verdicts are counted; no label may have this code


def run(config: JudgeStage, folder: StageFolder) -> None:
    """Judge with the teacher that the last of its trainings left."""
    trained = "6-dpo" if "6-dpo" in folder.inputs else "3-sft"
    _run(config, folder, str((folder.input(trained) / "model").resolve()))


def run_untuned(config: UntunedJudgeStage, folder: StageFolder) -> None:
    """Judge with the teacher as it comes."""
    _run(config, folder, model_asked(config.engine, config.teacher.model))


def run_given(config: JudgeStage, folder: StageFolder) -> None:
    """Ask nobody, and take the judgements from elsewhere."""
    _run(config, folder, None)


def _run(config: JudgeStage, folder: StageFolder, model: str | None) -> None:
    """Write `7-judgements/{judgements,failed,given}.parquet`, the last with the pairs judged elsewhere too.

    A pair fails if no perspective has answered, and is left out if nobody was asked and nobody has judged it.
    """
    scheme, names = load_scheme(config.labels.scheme), config.perspectives.names
    given = Given(folder.input("1-pairs") / GIVEN, names)
    rounds: list[Answers] = []
    dev: list[tuple[dict[str, Any], str]] = []
    quality, counts, origins = Quality(names), Counter[str](), Counter[str]()
    # Ray runs if somebody is asked; else there is little to do.
    spread = map if model is None else in_tasks
    with (
        table_writer(folder.path / "judgements.parquet", JUDGEMENT) as judged,
        table_writer(folder.path / "failed.parquet", ANSWER) as failed,
        table_writer(folder.path / "given.parquet", TAKEN) as taken,
    ):
        said = ((joined, given.answers(joined.pairs)) for joined in _answered(config, folder, model, given, rounds))
        for found in spread(partial(judge_batch, perspectives=names, scheme=scheme, fit=config.judge.fit), said):
            judged.write_table(found.judgements)
            failed.write_table(found.unusable)
            taken.write_table(found.taken)
            quality.merge(found.quality)
            dev += found.dev
            counts["requested"] += found.pairs
            counts["judged"] += len(found.judgements)
            counts["left_out" if model is None else "failed"] += found.pairs - len(found.judgements)
            counts["failed_answers"] += len(found.unusable)
            origins.update(found.origins)
    figures: dict[str, Any] = {"origins": dict(origins)} | asked_figures(rounds)
    if config.judge.fit:
        fit, losses = fit_vote([row for row, _ in dev], [gold for _, gold in dev], scheme)
        quality = rewrite(folder.path / "judgements.parquet", folder.input("1-pairs"), fit, names, scheme)
        by_name = {"temperatures": fit.temperatures, "weights": fit.weights}
        named = {what: dict(zip(names, values, strict=True)) for what, values in by_name.items()}
        figures["fit"] = {"dev_pairs": len(dev), **losses, **named}
    folder.finish(counts, {"quality": quality.figures()} | figures)


class JudgedBatch(NamedTuple):
    """Judgements of some pairs, and what a stage counts of them.

    `unusable` are the teacher's answers that failed, `taken` the ids of the pairs that were judged elsewhere, and `dev`
    the judgements of dev pairs from their perspectives with the gold labels, if the vote is to be fitted to them.
    """

    pairs: int
    judgements: pa.Table
    unusable: pa.Table
    taken: pa.Table
    quality: Quality
    origins: Counter[str]
    dev: list[tuple[dict[str, Any], str]]


def judge_batch(
    said: tuple[AnsweredPairs, Sequence[dict[str, Any]]], perspectives: Sequence[str], scheme: Scheme, fit: bool
) -> JudgedBatch:
    """Judge some pairs by the teacher's answers and the judgements from elsewhere, which have the form of answers."""
    joined, elsewhere = said
    rows = judge_pairs([*joined.answers.to_pylist(), *elsewhere], perspectives, scheme)
    truth = {row["pair_id"]: row for row in joined.pairs.to_pylist()}
    quality = Quality(perspectives)
    quality.add(rows, truth)
    by_gold = ((row, _gold_of_dev(truth[row["pair_id"]])) for row in rows) if fit else ()
    return JudgedBatch(
        pairs=len(joined.pairs),
        judgements=pa.Table.from_pylist(rows, JUDGEMENT),
        unusable=joined.answers.filter(pc.is_valid(joined.answers["reason"])),
        taken=pa.table([sorted({row["pair_id"] for row in elsewhere})], schema=TAKEN),
        quality=quality,
        origins=Counter(who for row in rows for who in _judges(row)),
        dev=[(row, gold) for row, gold in by_gold if gold and any(row["verdicts"])],
    )


def _judges(row: Mapping[str, Any]) -> list[str]:
    """Return who gave each verdict, or who judged the pair as a whole."""
    return [who for who in row["origin"] if who] if any(row["verdicts"]) else row["origin"][:1]


def _gold_of_dev(pair: Mapping[str, Any]) -> str | None:
    return pair["label"] if pair["split"] == "dev" else None


def rewrite(path: Path, pairs: Path, fit: VoteFit, perspectives: Sequence[str], scheme: Scheme) -> Quality:
    """Apply the fit to the judgements in the file, and return the quality that they then have."""
    quality = Quality(perspectives)
    # The writer's file takes the place of the one that is read once it is whole.
    with table_writer(path, JUDGEMENT) as judged, database(path.parent) as data:
        known = f"pair_id IN (SELECT pair_id FROM {scan(path)})"
        truth = data.in_order([pairs / "pairs.parquet"], "pair_id", ["pair_id", "label", "split"], known)
        for batches, last in data.in_order([path], "pair_id", JUDGEMENT.names).chunks():
            rows = [fit.apply(row, scheme) for row in conformed(batches, JUDGEMENT).to_pylist()]
            judged.write_table(pa.Table.from_pylist(rows, JUDGEMENT))
            quality.add(rows, {row["pair_id"]: row for batch in truth.upto(last) for row in batch.to_pylist()})
    return quality


def _answered(
    config: JudgeStage, folder: StageFolder, model: str | None, given: Given, rounds: list[Answers]
) -> Iterator[AnsweredPairs]:
    """Yield all pairs, those about which the teacher is asked with its answers. What was asked goes to `rounds`."""
    pairs = folder.input("1-pairs") / "pairs.parquet"
    if model is not None:
        left = given.to_ask(select_pairs(pairs, config.judge))
        first = next(left, None)
        if first is not None or given.path is None:
            plan = GenerationPlan.of(config, model, config.judge)
            asked = chain([] if first is None else [first], left)
            rounds.append(generate(plan, asked, folder.path, "judgements"))
            yield from rounds[0].by_pair()
    yield from given.unasked(select_pairs(pairs, config.judge), nobody=model is None)


def judge_pairs(answers: Iterable[dict[str, Any]], perspectives: Sequence[str], scheme: Scheme) -> list[dict[str, Any]]:
    """Return the judgements of the pairs to which any perspective has an answer, sorted by pair."""
    by_pair: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in answers:
        by_pair[row["pair_id"]].append(row)
    judged = ((pair_id, judge(rows, perspectives, scheme)) for pair_id, rows in sorted(by_pair.items()))
    return [{"pair_id": pair_id} | found for pair_id, found in judged if found is not None]


def judge(answers: Iterable[dict[str, Any]], perspectives: Sequence[str], scheme: Scheme) -> dict[str, Any] | None:
    """Combine the answers to one pair into a judgement; return None if no perspective has answered.

    The vote is the verdict of most perspectives (see `majority`). A perspective that was asked several times has the
    verdict of most of its samples, their `mean_distribution`, and the first rationale with that verdict.
    """
    by_perspective: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in answers:
        if row["reason"] is None:
            by_perspective[row["perspective"] or WHOLE].append(row)
    if not by_perspective:
        return None
    if whole := by_perspective.pop(WHOLE, None):
        return _judged_as_a_whole(whole[0], len(perspectives), scheme)
    said, soft = {}, {}
    for name, rows in sorted(by_perspective.items()):  # a tie must not depend on the order of the answers
        each = [distribution(row["logprobs"], row["verdict"], scheme) for row in rows]
        verdict, _ = majority([row["verdict"] for row in rows], each, scheme)
        said[name] = next(row for row in rows if row["verdict"] == verdict)
        soft[name] = mean_distribution(rows, scheme)
    mean = np.mean(list(soft.values()), axis=0)
    vote, votes = majority([row["verdict"] for row in said.values()], list(soft.values()), scheme)
    return {
        "vote": vote,
        "agreement": votes / len(perspectives),
        "soft": mean.tolist(),
        "verdicts": [said[p]["verdict"] if p in said else None for p in perspectives],
        "rationales": [said[p]["rationale"] if p in said else None for p in perspectives],
        "perspective_soft": [soft[p].tolist() if p in said else None for p in perspectives],
        "origin": [said[p].get("origin", TEACHER) if p in said else None for p in perspectives],
    }


def _judged_as_a_whole(row: Mapping[str, Any], perspectives: int, scheme: Scheme) -> dict[str, Any]:
    """Return the judgement of somebody who judged the pair from no perspective in particular."""
    silent = dict.fromkeys(("verdicts", "rationales", "perspective_soft"), [None] * perspectives)
    soft = distribution(row["logprobs"], row["verdict"], scheme).tolist()
    return {"vote": row["verdict"], "agreement": 1.0, "soft": soft, **silent, "origin": [row["origin"]] * perspectives}


class Quality:
    """Computes accuracy and macro-F1 per split, of each perspective and of the vote, from counts."""

    def __init__(self, perspectives: Sequence[str]) -> None:
        self.perspectives = perspectives
        self.counts: dict[tuple[str, str], Counter[tuple[str, str]]] = defaultdict(Counter)

    def add(self, rows: Iterable[Mapping[str, Any]], truth: Mapping[str, Mapping[str, Any]]) -> None:
        """Count judgements. `truth` has the `label` and `split` of each pair, by its id."""
        for row in rows:
            label, split = truth[row["pair_id"]]["label"], truth[row["pair_id"]]["split"]
            if label is None:
                continue
            # A pair that was judged as a whole says nothing about the perspectives.
            for name, verdict in zip(self.perspectives, row["verdicts"], strict=True) if any(row["verdicts"]) else ():
                self.counts[split, name][label, verdict or NO_VERDICT] += 1
            self.counts[split, "vote"][label, row["vote"]] += 1

    def merge(self, other: Quality) -> None:
        """Count what another one has counted."""
        for key, counts in other.counts.items():
            self.counts[key].update(counts)

    def figures(self) -> dict[str, Any]:
        """Return the scores by split and by perspective or vote."""
        found: dict[str, Any] = {}
        for split in ("train", "dev", "test"):
            scores = {
                n: _scores(self.counts[split, n]) for n in (*self.perspectives, "vote") if (split, n) in self.counts
            }
            found |= {split: scores} if scores else {}
        return found


def _scores(counts: Counter[tuple[str, str]]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    gold, said = zip(*counts, strict=True)
    times = list(counts.values())
    macro = f1_score(gold, said, labels=sorted(set(gold)), average="macro", zero_division=0, sample_weight=times)
    accuracy = accuracy_score(gold, said, sample_weight=times)
    return {"accuracy": float(accuracy), "macro_f1": float(macro), "pairs": sum(times)}
