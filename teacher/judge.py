"""Stage 7: the DPO teacher judges every pair: verdict and rationale per perspective, vote, soft labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.artifacts import StageFolder
from cluster.models import model_fingerprint
from cluster.storage import read_table, write_table
from mpcot.config import JudgeStage
from mpcot.generate import GenerationPlan, generate, select_pairs
from mpcot.labels import Scheme, load_scheme
from mpcot.perspective import load_perspectives
from mpcot.records import ANSWER, JUDGEMENT

SURE = 0.9


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
    answers = generate(plan, select_pairs(pairs, config.judge), folder.path, "judgements").to_pylist()
    by_pair: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in answers:
        by_pair[row["pair_id"]].append(row)
    judged = {k: judge(rows, config.perspectives.names, scheme) for k, rows in by_pair.items()}
    rows = [{"pair_id": k} | judgement for k, judgement in judged.items() if judgement is not None]
    failed = [row for row in answers if row["reason"] is not None]
    write_table(folder.path / "judgements.parquet", pa.Table.from_pylist(rows, JUDGEMENT))
    write_table(folder.path / "failed.parquet", pa.Table.from_pylist(failed, ANSWER))
    lost = len(by_pair) - len(rows)
    counts = {"requested": len(by_pair), "judged": len(rows), "failed": lost, "failed_answers": len(failed)}
    folder.finish(counts, {"quality": quality(rows, pairs, config.perspectives.names)})


def judge(answers: Iterable[dict[str, Any]], perspectives: Sequence[str], scheme: Scheme) -> dict[str, Any] | None:
    """Combine one pair's answers into a judgement, or None where no perspective answered.

    The vote is the majority's; ties go to the label with the higher mean log-probability.
    """
    said = {row["perspective"]: row for row in answers if row["reason"] is None}
    if not said:
        return None
    soft = {name: distribution(row["logprobs"], row["verdict"], scheme) for name, row in said.items()}
    mean = np.mean(list(soft.values()), axis=0)
    log_mean = np.mean([np.log(np.maximum(p, 1e-9)) for p in soft.values()], axis=0)
    votes = Counter(row["verdict"] for row in said.values())
    vote = max(votes, key=lambda code: (votes[code], log_mean[scheme.index(code)]))
    return {
        "vote": vote,
        "agreement": votes[vote] / len(perspectives),
        "soft": mean.tolist(),
        "verdicts": [said[p]["verdict"] if p in said else None for p in perspectives],
        "rationales": [said[p]["rationale"] if p in said else None for p in perspectives],
        "perspective_soft": [soft[p].tolist() if p in said else None for p in perspectives],
    }


def distribution(logprobs: Sequence[float] | None, verdict: str, scheme: Scheme) -> np.ndarray:
    """Return the distribution over labels at the verdict token; without log-probabilities, sure of the verdict."""
    if logprobs is None:
        rest = (1 - SURE) / (len(scheme.codes) - 1)
        return np.asarray([SURE if code == verdict else rest for code in scheme.codes])
    weights = np.exp(np.asarray(logprobs, dtype=np.float64) - max(logprobs))
    return weights / weights.sum()


def quality(rows: list[dict[str, Any]], pairs: Any, perspectives: Sequence[str]) -> dict[str, Any]:
    """Return accuracy and macro-F1 per split, of each perspective and of the vote."""
    table = read_table(pairs, ["pair_id", "label", "split"]).to_pylist()
    truth = {row["pair_id"]: (row["label"], row["split"]) for row in table}
    found: dict[str, Any] = {}
    for split in ("train", "dev", "test"):
        judged = [row for row in rows if truth[row["pair_id"]][1] == split]
        if not judged:
            continue
        gold = [truth[row["pair_id"]][0] for row in judged]
        said = {name: [row["verdicts"][i] or "none" for row in judged] for i, name in enumerate(perspectives)}
        said["vote"] = [row["vote"] for row in judged]
        found[split] = {name: _scores(gold, verdicts) for name, verdicts in said.items()}
    return found


def _scores(gold: list[str], verdicts: list[str]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    labels = sorted(set(gold))
    macro = f1_score(gold, verdicts, labels=labels, average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(gold, verdicts)), "macro_f1": float(macro), "pairs": len(gold)}
