"""Stage 7: the DPO teacher judges every pair: verdict and rationale per perspective, vote, soft labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.base.stage_folder import StageFolder
from cluster.base.tables import table_writer
from cluster.models.folders import model_fingerprint
from mpcot.asking.answers import asked_figures
from mpcot.asking.generate import generate, select_pairs
from mpcot.asking.plan import GenerationPlan
from mpcot.config import JudgeStage
from mpcot.perspectives.perspective import load_perspectives
from mpcot.records import ANSWER, JUDGEMENT
from mpcot.schemes.scheme import Scheme, load_scheme
from mpcot.votes import distribution, majority

NO_VERDICT = "-"  # counted as said where there was none; no label has this code


def run(config: JudgeStage, folder: StageFolder) -> None:
    """Write `7-judgements/{judgements,failed}.parquet`; a pair fails when no perspective answered."""
    model = str((folder.input("6-dpo") / "model").resolve())
    scheme = load_scheme(config.labels.scheme)
    plan = GenerationPlan(
        model=model,
        model_digest=model_fingerprint(model),
        engine=config.engine,
        scheme=scheme,
        perspectives=load_perspectives(config.perspectives),
        ask=config.judge,
        seed=config.seed,
    )
    pairs = folder.input("1-pairs") / "pairs.parquet"
    answers = generate(plan, select_pairs(pairs, config.judge), folder.path, "judgements")
    quality = Quality(config.perspectives.names)
    counts: Counter[str] = Counter()
    with (
        table_writer(folder.path / "judgements.parquet", JUDGEMENT) as judged,
        table_writer(folder.path / "failed.parquet", ANSWER) as failed,
    ):
        for shelf in answers.shelves():
            rows = judge_shelf(shelf.answers, config.perspectives.names, scheme)
            unusable = shelf.answers.filter(pc.is_valid(shelf.answers["reason"]))
            judged.write_table(pa.Table.from_pylist(rows, JUDGEMENT))
            failed.write_table(unusable)
            quality.add(rows, {row["pair_id"]: row for row in shelf.pairs.to_pylist()})
            counts["requested"] += len(shelf.pairs)
            counts["judged"] += len(rows)
            counts["failed"] += len(shelf.pairs) - len(rows)
            counts["failed_answers"] += len(unusable)
    folder.finish(counts, {"quality": quality.figures()} | asked_figures([answers]))


def judge_shelf(answers: pa.Table, perspectives: Sequence[str], scheme: Scheme) -> list[dict[str, Any]]:
    """Return the judgements of the pairs that any perspective answered, sorted by pair."""
    by_pair: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in answers.to_pylist():
        by_pair[row["pair_id"]].append(row)
    judged = ((pair_id, judge(rows, perspectives, scheme)) for pair_id, rows in by_pair.items())
    return [{"pair_id": pair_id} | found for pair_id, found in judged if found is not None]


def judge(answers: Iterable[dict[str, Any]], perspectives: Sequence[str], scheme: Scheme) -> dict[str, Any] | None:
    """Combine one pair's answers into a judgement, or None where no perspective answered.

    The vote is the majority's; ties go to the label with the higher mean log-probability. A perspective that was asked
    several times has the verdict of most of its samples, the mean of their distributions, and the first rationale with
    that verdict.
    """
    by_perspective: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in answers:
        if row["reason"] is None:
            by_perspective[row["perspective"]].append(row)
    if not by_perspective:
        return None
    said, soft = {}, {}
    for name, rows in by_perspective.items():
        each = [distribution(row["logprobs"], row["verdict"], scheme) for row in rows]
        verdict, _ = majority([row["verdict"] for row in rows], each, scheme)
        said[name] = next(row for row in rows if row["verdict"] == verdict)
        soft[name] = np.mean(each, axis=0)
    mean = np.mean(list(soft.values()), axis=0)
    vote, votes = majority([row["verdict"] for row in said.values()], list(soft.values()), scheme)
    return {
        "vote": vote,
        "agreement": votes / len(perspectives),
        "soft": mean.tolist(),
        "verdicts": [said[p]["verdict"] if p in said else None for p in perspectives],
        "rationales": [said[p]["rationale"] if p in said else None for p in perspectives],
        "perspective_soft": [soft[p].tolist() if p in said else None for p in perspectives],
    }


class Quality:
    """Accuracy and macro-F1 per split, of each perspective and of the vote, from counts alone."""

    def __init__(self, perspectives: Sequence[str]) -> None:
        self.perspectives = perspectives
        self.counts: dict[tuple[str, str], Counter[tuple[str, str]]] = defaultdict(Counter)

    def add(self, rows: Iterable[Mapping[str, Any]], truth: Mapping[str, Mapping[str, Any]]) -> None:
        """Count judgements. `truth` has `label` and `split` by pair id."""
        for row in rows:
            label, split = truth[row["pair_id"]]["label"], truth[row["pair_id"]]["split"]
            if label is None:
                continue
            for name, verdict in zip(self.perspectives, row["verdicts"], strict=True):
                self.counts[split, name][label, verdict or NO_VERDICT] += 1
            self.counts[split, "vote"][label, row["vote"]] += 1

    def figures(self) -> dict[str, Any]:
        """Return the scores by split and judge."""
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
    occur = sorted({*gold, *said} - {NO_VERDICT})
    macro = f1_score(gold, said, labels=occur, average="macro", zero_division=0, sample_weight=times)
    accuracy = accuracy_score(gold, said, sample_weight=times)
    return {"accuracy": float(accuracy), "macro_f1": float(macro), "pairs": sum(times)}
