"""Reads the finished folders into one plain dict, which becomes `report.json` and the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder, read_manifest
from cluster.base.tables import rows_of
from cluster.training.best_weights import kept
from cluster.training.driver import read_history
from distill.config import LEAST_SKILL
from distill.report.config import ReportStage
from distill.report.quality import agreement, headline, stages_of_teacher, teacher
from distill.report.segments import segments
from distill.report.volume import by_thousand
from distill.student.calibration import with_biases
from mpcot.asking.address.meter import usage_said
from mpcot.asking.failure_reasons import kind_of
from mpcot.records import SPLITS
from mpcot.schemes.scheme import Scheme, load_scheme
from mpcot.sources.clean_rows import reason_of

Rows = list[dict[str, Any]]
Pairs = dict[str, dict[str, Any]]

ASKING = ("2-rationales", "4-samples")
STUDENTS = ("lrkd", "ce_only")


def collect(config: ReportStage, folder: StageFolder) -> dict[str, Any]:
    """Return the whole report as plain data, without the latency, which is measured and not read.

    Raises:
        UserError: a stage that the report needs has not finished, or a file of it is missing.
    """
    at = {stage: finished(folder.input(stage)) for stage in folder.inputs}
    scheme = load_scheme(config.labels.scheme)
    names = list(config.perspectives.names)
    pairs = {row["pair_id"]: row for row in rows_of(at["1-pairs"] / "pairs.parquet")}
    judged = {row["pair_id"]: row for row in rows_of(at["7-judgements"] / "judgements.parquet")}
    students = predictions(at["9-student"])
    biased = bool((read_manifest(at["10-export"]) or {})["figures"].get("label_bias"))
    if biased:
        students = {name: with_biases(rows, pairs, scheme) for name, rows in students.items()}
    answers = {stage: answers_of(at[stage]) for stage in ASKING if stage in at}
    draws = {"resamples": config.report.bootstrap_resamples, "seed": config.seed}
    quality = headline(pairs, judged, students, scheme, **draws)
    stages = [stage_row(stage, place) for stage, place in at.items()]
    return {
        "name": config.name,
        "scheme": scheme.model_dump(mode="json"),
        "perspectives": names,
        "data": data(pairs, at["1-pairs"], scheme),
        "headline": quality,
        "segments": segments(pairs, judged, students, names, scheme, **draws),
        "teacher": teacher(pairs, judged, names, scheme),
        "teacher_by_stage": stages_of_teacher(pairs, judged, answers, names),
        "agreement": agreement(pairs, judged, names),
        "unlabelled": by_thousand(pairs, judged, scheme),
        "answers": {stage: kept_rates(found, pairs, names, scheme) for stage, found in answers.items()},
        "biased": biased,
        "curves": (curves := histories(at)),
        "alignment": alignment(curves.get("lrkd", [])),
        "samples": samples(pairs, judged, students, names, config.report.samples),
        "stages": stages,
        "billed": billed(stages),
    }


def finished(path: Path) -> Path:
    """Return the folder of a stage; raise a `UserError` if the stage has not finished."""
    if read_manifest(path) is None:
        raise UserError(f"{path} has no manifest.json, so that stage has not finished: run it before the report")
    return path


def predictions(folder: Path) -> dict[str, Pairs]:
    """Return the predictions of every trained student by pair id. Only the baseline may be missing."""
    found = {name: folder / name / "predictions.parquet" for name in STUDENTS}
    if not found["lrkd"].exists():
        raise UserError(f"{found['lrkd']} is missing: delete {folder} and run 9-student again")
    return {name: {row["pair_id"]: row for row in rows_of(path)} for name, path in found.items() if path.exists()}


def answers_of(folder: Path) -> dict[str, Rows]:
    """Return a generation stage's answers by outcome, without hinted ones, which say nothing about the teacher."""
    outcomes = ("kept", "filtered", "failed")
    return {name: [row for row in rows_of(folder / f"{name}.parquet") if not row["hinted"]] for name in outcomes}


def count_by(
    rows: Iterable[Mapping[str, Any]], field: str, most: int = 12, named: Callable[[str], str] = str
) -> dict[str, int]:
    """Count rows by the named value of `field`, the most frequent first. Values beyond `most` are one entry."""
    ranked = Counter(named(str(row[field])) for row in rows).most_common()
    rest = sum(count for _, count in ranked[most:])
    return dict(ranked[:most]) | ({f"{len(ranked) - most} other values": rest} if rest else {})


def data(pairs: Pairs, folder: Path, scheme: Scheme) -> dict[str, Any]:
    """Return pairs, queries and labels per split, and the reasons of failed source rows."""
    splits = {}
    for split in SPLITS:
        rows = [row for row in pairs.values() if row["split"] == split]
        if rows:
            labels = Counter(row["label"] for row in rows)
            splits[split] = {
                "pairs": len(rows),
                "queries": len({row["query_id"] for row in rows}),
                "labels": {code: labels[code] for code in scheme.codes},
            }
    failed, seeds = (rows_of(folder / f"{name}.parquet") for name in ("failed", "seeds"))
    found = {"failed": count_by(failed, "reason", named=reason_of), "seeds": count_by(seeds, "origin")}
    overlap = (read_manifest(folder) or {}).get("figures", {}).get("overlap")
    return {"splits": splits, "overlap": overlap, **found}


def kept_rates(found: dict[str, Rows], pairs: Pairs, names: list[str], scheme: Scheme) -> dict[str, Any]:
    """Return how many answers were kept per perspective and gold label, and why the others were not."""
    kept, asked = (
        Counter((row["perspective"], pairs[row["pair_id"]]["label"]) for name in outcomes for row in found[name])
        for outcomes in (["kept"], found)
    )
    cells = [
        {"perspective": name, "label": code, "kept": kept[name, code], "asked": asked[name, code]}
        for name in names
        for code in scheme.codes
    ]
    reasons = {outcome: count_by(found[outcome], "reason", named=kind_of) for outcome in ("filtered", "failed")}
    return {"counts": {outcome: len(rows) for outcome, rows in found.items()}, "kept": cells, **reasons}


def histories(at: Mapping[str, Path]) -> dict[str, Rows]:
    """Return the log of every training."""
    places = {name: at[stage] for name, stage in (("sft", "3-sft"), ("dpo", "6-dpo")) if stage in at}
    places |= {name: at["9-student"] / name for name in STUDENTS}
    logs = {name: place / "history.jsonl" for name, place in places.items()}
    # A training that there was no data for, or a baseline that was not wanted, has no log.
    found = {name: read_history(log) for name, log in logs.items() if log.exists()}
    return {name: rows for name, rows in found.items() if rows}


def alignment(history: Rows) -> dict[str, Any] | None:
    """Return the `skill` of the saved student's alignment on dev and what it `says`; None without an alignment."""
    skill = kept(history).get("alignment_skill")
    if skill is None:
        return None
    verdict = f"At {LEAST_SKILL} and above, the student counts as having learnt something of the rationales."
    if skill < LEAST_SKILL:
        means = 'Mean rationales (target_pairs = "alike") differ so little that a constant comes near them, too.'
        verdict = f"Below {LEAST_SKILL}, the pairs' own rationales count as not learnt. {means}"
    return {"skill": skill, "says": f"On dev, the alignment skill of the saved LRKD student is {skill:.3f}. {verdict}"}


def samples(pairs: Pairs, judged: Pairs, students: dict[str, Pairs], names: list[str], wanted: int) -> Rows:
    """Return test pairs with the teacher's rationales and the students' answers.

    The labels take turns, and pairs come in the order of their ids, which are hashes: nobody's being right counts.
    """
    by_label: dict[str, list[str]] = {}
    for pair_id in sorted(judged):
        if pairs[pair_id]["split"] == "test":
            by_label.setdefault(pairs[pair_id]["label"], []).append(pair_id)
    turns = [pair_id for turn in zip_longest(*by_label.values()) for pair_id in turn if pair_id is not None]
    return [sample(pairs[i], judged[i], students, names) for i in turns[:wanted]]


def sample(
    pair: dict[str, Any], judged: dict[str, Any], students: dict[str, Pairs], names: list[str]
) -> dict[str, Any]:
    """Return one pair as the page shows it."""
    said = zip(names, judged["verdicts"], judged["rationales"], strict=True)
    fields = ("pair_id", "query", "title", "brand", "label")
    return {
        **{field: pair[field] for field in fields},
        "vote": judged["vote"],
        "agreement": judged["agreement"],
        "perspectives": [{"name": n, "verdict": v, "rationale": r} for n, v, r in said],
        "students": {
            name: {"label": rows[pair["pair_id"]]["label"], "probabilities": rows[pair["pair_id"]]["probabilities"]}
            for name, rows in students.items()
            if pair["pair_id"] in rows
        },
    }


def stage_row(stage: str, folder: Path) -> dict[str, Any]:
    """Return what the page shows of a stage's manifest."""
    manifest = read_manifest(folder)
    assert manifest is not None, "checked by `finished`"
    picked = ("counts", "figures", "seconds", "finished", "versions")
    return {"stage": stage, **{key: manifest[key] for key in picked}}


def billed(stages: Rows) -> str | None:
    """Return in words the tokens of all stages that were billed, and their cost; None if nobody was paid."""
    sums: Counter[str] = Counter()
    for row in stages:
        sums.update(row["figures"].get("usage", {}))
    return usage_said(sums) if sums else None
