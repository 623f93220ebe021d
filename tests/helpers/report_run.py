"""A made-up but consistent run folder, small enough to write in a second: what the report's tests read.

Answers follow simple rules over the pair's number n, so that every figure can be worked out by hand:
the teacher's vote is wrong where n % 6 == 0, the LRKD student where n % 4 == 0, labels only where n % 3 == 0. Where n
is odd, three people rated the pair and one of them gave another label.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from cluster.base.stage_folder import StageFolder
from cluster.base.tables import write_table
from distill.config import PolyExtractor, StudentConfig, TargetSettings
from distill.lrkd.predictions import PREDICTION
from distill.report.config import ReportSettings, ReportStage
from distill.student.model import build_student, load_tokenizer
from mpcot.config import PerspectiveSettings
from mpcot.records import FAILED_ROW, JUDGEMENT, PAIR, SEED, SORTED
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.config import LabelSettings
from tests.helpers.tiny_bert import tiny_bert

STAGES = (
    "1-pairs", "2-rationales", "3-sft", "4-samples", "5-preferences", "6-dpo", "7-judgements", "8-targets", "9-student",
    "10-export",
)  # fmt: skip
CODES = ("E", "S", "C", "I")
NAMES = ("intent", "attributes", "rules")
QUERIES = {"train": 10, "dev": 3, "test": 6}
PRODUCTS = 4
SCRIPT = "<script>alert(1)</script>"
WORDS = {"E": "is exactly what", "S": "could replace what", "C": "goes with what", "I": "has nothing to do with what"}


def report_stage(samples: int = 5, encoder: Path = Path("missing")) -> ReportStage:
    """Settings of a quick report. The encoder is needed where the export has an index."""
    quick = ReportSettings(samples=samples, bootstrap_resamples=200, latency_singles=20, latency_batches=2)
    return ReportStage(
        name="made-up",
        seed=1,
        labels=LabelSettings(),
        perspectives=PerspectiveSettings(names=NAMES),
        targets=TargetSettings(encoder=str(encoder), max_tokens=48),
        report=quick,
    )


def report_folder(run_dir: Path, stages: Sequence[str] = STAGES) -> StageFolder:
    """The folder that stage 11 writes, with the stages that it may read declared."""
    return StageFolder(run_dir, "11-report", {}, dict.fromkeys(stages, "made-up"))


def another(code: str, step: int = 1) -> str:
    """A label that is not `code`."""
    return CODES[(CODES.index(code) + step) % len(CODES)]


def pairs() -> list[dict[str, Any]]:
    """Four products per query, one of each label; queries numbered through the splits."""
    rows = []
    for split, queries in QUERIES.items():
        for _ in range(queries * PRODUCTS):
            n, label = len(rows), CODES[len(rows) % PRODUCTS]
            rows.append(
                {
                    "pair_id": f"p{n:03}",
                    "query_id": f"q{n // PRODUCTS:02}",
                    "product_id": f"x{n}",
                    "locale": "us",
                    "query": f"red phone case {n // PRODUCTS}",
                    "title": f"blue lamp {n} {SCRIPT if n % PRODUCTS == 0 else 'with a long name ' * 6}",
                    "brand": "Mug" if n % 2 else None,
                    "description": None,
                    "label": label,
                    "split": split,
                    "ratings": [label, label, another(label)] if n % 2 else None,
                }
            )
    return rows


def spread(code: str) -> list[float]:
    """Probabilities with 0.7 on `code`."""
    return [0.7 if c == code else 0.1 for c in CODES]


def write_run(run_dir: Path, baseline: bool = True, preferences: bool = True, tiny: Path | None = None) -> StageFolder:
    """Write the ten folders that the report reads and return the folder of the eleventh."""
    rows = pairs()
    write_pairs(run_dir / "1-pairs", rows)
    for stage, wrong_every in (("2-rationales", 2), ("4-samples", 4)):
        write_answers(run_dir / stage, [row for row in rows if row["split"] != "test"], wrong_every)
    write_history(run_dir / "3-sft", [2.0, 1.2, 0.8])
    if preferences:
        write_history(run_dir / "6-dpo", [0.693, 0.5, 0.4], margin=True)
    write_judgements(run_dir / "7-judgements", rows)
    wrong = {"lrkd": 4, "ce_only": 3} if baseline else {"lrkd": 4}
    for name, every in wrong.items():
        write_student(run_dir / "9-student" / name, rows, every)
    if tiny:
        write_export(run_dir / "10-export", tiny)
    for i, stage in enumerate(STAGES):
        (run_dir / stage).mkdir(exist_ok=True)
        StageFolder(run_dir, stage).finish({"rows_written": 1000 + i})
    return report_folder(run_dir)


def write_pairs(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Stage 1, with two failed rows of one reason and a seed rationale."""
    write_table(folder / "pairs.parquet", pa.Table.from_pylist(rows, PAIR))
    failed = [{"source_row": i, "reason": "the title is blank", "row": "{}"} for i in (7, 9)]
    write_table(folder / "failed.parquet", pa.Table.from_pylist(failed, FAILED_ROW))
    seed = {"pair_id": "p000", "perspective": "intent", "rationale": "It fits.", "verdict": "E", "origin": "catalogue"}
    write_table(folder / "seeds.parquet", pa.Table.from_pylist([seed], SEED))


def write_answers(folder: Path, rows: list[dict[str, Any]], wrong_every: int) -> None:
    """One answer per pair and perspective: wrong where n % wrong_every == 0, and intent fails on pair 1."""
    parts: dict[str, list[dict[str, Any]]] = {"kept": [], "filtered": [], "failed": []}
    for n, row in enumerate(rows):
        for name in NAMES:
            answer: dict[str, Any] = {"key": f"{n}{name}", "pair_id": row["pair_id"], "perspective": name, "sample": 0}
            answer["hinted"] = False
            if n == 1 and name == "intent":
                parts["failed"].append(answer | {"reason": "the prompt is too long"})
            elif n % wrong_every == 0:
                verdict = another(row["label"])
                parts["filtered"].append(
                    answer | {"verdict": verdict, "rationale": "No.", "reason": "not the gold label"}
                )
            else:
                parts["kept"].append(answer | {"verdict": row["label"], "rationale": "Yes."})
    for name, found in parts.items():
        write_table(folder / f"{name}.parquet", pa.Table.from_pylist(found, SORTED))


def write_judgements(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Vote wrong where n % 6 == 0; intent says nothing where n % 8 == 5, rules is wrong where n % 6 < 2."""
    found = []
    for n, row in enumerate(rows):
        vote = another(row["label"]) if n % 6 == 0 else row["label"]
        verdicts = [None if n % 8 == 5 else vote, vote, another(row["label"]) if n % 6 < 2 else row["label"]]
        said = [
            None if v is None else f"The shopper wants a red phone case; this {WORDS[v]} they want." for v in verdicts
        ]
        found.append(
            {
                "pair_id": row["pair_id"],
                "vote": vote,
                "agreement": sum(v == vote for v in verdicts) / 3,
                "soft": spread(vote),
                "verdicts": verdicts,
                "rationales": said,
                "perspective_soft": [None if v is None else spread(v) for v in verdicts],
            }
        )
    write_table(folder / "judgements.parquet", pa.Table.from_pylist(found, JUDGEMENT))


def write_student(folder: Path, rows: list[dict[str, Any]], wrong_every: int) -> None:
    """Predictions on dev and test, and a history with the figures that a student logs."""
    found = []
    for n, row in enumerate(rows):
        if row["split"] in ("dev", "test"):
            label = another(row["label"], 2) if n % wrong_every == 0 else row["label"]
            found.append({**{k: row[k] for k in ("pair_id", "split")}, "label": label, "probabilities": spread(label)})
    write_table(folder / "predictions.parquet", pa.Table.from_pylist(found, PREDICTION))
    more = (
        {"alignment_over_ce_loss": 0.3, "alignment_over_ce_gradient": 0.2, "alignment_skill": 0.05}
        if folder.name == "lrkd"
        else {}
    )
    write_history(folder, [1.4, 1.0, 0.7], **more)


def write_history(folder: Path, losses: list[float], margin: bool = False, **more: float) -> None:
    """One train and one dev row per loss; the first dev row is step 0."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, loss in enumerate(losses):
        figures = {"loss": loss, "macro_f1": 0.2 + 0.2 * i, **({"margin": 0.5 * i} if margin else {})}
        rows.append({"step": 10 * i, "epoch": float(i), "split": "dev", **figures, **more, "seconds": 1.0 * i})
        rows.append({"step": 10 * i + 5, "epoch": i + 0.5, "split": "train", **figures, "seconds": i + 0.5})
    rows[-2]["kept"] = True
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_export(folder: Path, tiny: Path, per_perspective: bool = True) -> Path:
    """An untrained student on the tiny encoder in `tiny`, saved as an export folder."""
    config = StudentConfig(
        scheme=load_scheme("esci"),
        perspectives=NAMES,
        extractor=PolyExtractor(codes=4),
        per_perspective=per_perspective,
        target_width=8,
        max_tokens=48,
        fields="title",
        fingerprint="0123456789abcdef",
    )
    tiny_bert(tiny)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        build_student(str(tiny), config).save(folder, load_tokenizer(tiny))
    return folder
