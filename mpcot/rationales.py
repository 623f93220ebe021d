"""Stages 2 and 4: rationales from every perspective, kept where the verdict is the gold label.

Both stages ask in the same way; stage 2 asks the teacher as it came, stage 4 the one after SFT.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.artifacts import StageFolder
from cluster.models import check_model, model_fingerprint
from cluster.storage import read_table, write_table
from mpcot.config import AnswerSettings, RationaleStage, SampleStage
from mpcot.generate import GenerationPlan, generate, select_pairs
from mpcot.labels import load_scheme
from mpcot.parsing import Parsed, filter_reason
from mpcot.perspective import load_perspectives
from mpcot.records import ANSWER


def run_rationales(config: RationaleStage, folder: StageFolder) -> None:
    """Stage 2: the teacher as it came writes `2-rationales/{kept,filtered,failed}.parquet`."""
    model = check_model("teacher.model", config.teacher.model)
    _run(config, folder, model, config.rationales, "rationales")


def run_samples(config: SampleStage, folder: StageFolder) -> None:
    """Stage 4: the SFT teacher writes `4-samples/{kept,filtered,failed}.parquet`."""
    _run(config, folder, str((folder.input("3-sft") / "model").resolve()), config.samples, "samples")


def _run(
    config: RationaleStage | SampleStage, folder: StageFolder, model: str, ask: AnswerSettings, label: str
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
    pairs = folder.input("1-pairs") / "pairs.parquet"
    answers = generate(plan, select_pairs(pairs, ask), folder.path, label)
    parts = sort_out(answers, gold_labels(pairs))
    for name, table in parts.items():
        write_table(folder.path / f"{name}.parquet", table)
    counts = {"requested": len(answers)} | {name: len(table) for name, table in parts.items()}
    folder.finish(counts, figures(parts, answers) | {"model": model_fingerprint(model)})


def gold_labels(pairs: Path) -> dict[str, str | None]:
    """Return the gold label of every pair, None where it has none."""
    table = read_table(pairs, ["pair_id", "label"])
    return dict(zip(table["pair_id"].to_pylist(), table["label"].to_pylist(), strict=True))


def sort_out(answers: pa.Table, gold: dict[str, str | None]) -> dict[str, pa.Table]:
    """Deal answers to kept, filtered and failed, each with its reason; every row goes to exactly one."""
    reasons = answers["reason"].to_pylist()
    outcome = ["failed" if reason else "kept" for reason in reasons]
    columns = (answers[name].to_pylist() for name in ("pair_id", "rationale", "verdict"))
    for place, (pair_id, rationale, verdict) in enumerate(zip(*columns, strict=True)):
        if outcome[place] == "failed":
            continue
        reasons[place] = filter_reason(Parsed(rationale, verdict, None), gold[pair_id])
        outcome[place] = "filtered" if reasons[place] else "kept"
    place = answers.schema.get_field_index("reason")
    answers = answers.set_column(place, ANSWER.field("reason"), pa.array(reasons, pa.string()))
    kinds = pa.array(outcome)
    return {kind: answers.filter(pc.equal(kinds, kind)) for kind in ("kept", "filtered", "failed")}


def figures(parts: dict[str, pa.Table], answers: pa.Table) -> dict[str, Any]:
    """Return the counts by reason and perspective, and what was asked and reused."""
    metadata = {k.decode(): int(v) for k, v in (answers.schema.metadata or {}).items()}
    return metadata | {
        "reasons": _counted(
            pa.chunked_array([*parts["filtered"]["reason"].chunks, *parts["failed"]["reason"].chunks], pa.string())
        ),
        "kept_by_perspective": _counted(parts["kept"]["perspective"]),
        "output_tokens": pc.sum(answers["output_tokens"]).as_py() or 0,
        "prompt_tokens": pc.sum(answers["prompt_tokens"]).as_py() or 0,
    }


def _counted(values: Iterable[Any] | pa.ChunkedArray) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in pc.value_counts(values).to_pylist()}
