"""A data set of a study: its folds by query, a digest of its content, and what the tables need to know of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import Field

from cluster.base.errors import UserError
from cluster.base.stage_folder import MANIFEST, digest, read_json, write_json
from cluster.base.tables import read_table, write_table
from cluster.config import Settings
from cluster.models.folders import check_model, model_fingerprint
from distill.study.config import DataSet, StudyConfig
from distill.study.segment_tables import NO_ANSWER, Segment, segments_of
from mpcot.config import PerspectiveSettings
from mpcot.pairs.splits import unit_hash
from mpcot.records import PAIR
from mpcot.schemes.scheme import Scheme, load_scheme
from mpcot.sources.config import LabelSettings

READS = {"1-pairs": "pairs", "7-judgements": "judgements", "8-targets": "targets"}
INDEX = "pairs.json"


class StudyPairs(Settings):
    """`pairs.json`, beside a data set's records: every pair that is tested, without its text.

    `fingerprint` is of the data's content and the hidden labels, `model` of the starting encoder; `unlabelled` says
    whether any pair of a student's training has no label. Lists run over the pairs in one order,
    their parts joined by spaces so that the file stays small. With the records alone it gives every table again, on a
    machine without the run folder.
    """

    format: int = 1
    fingerprint: str
    model: str
    scheme: Scheme
    perspectives: tuple[str, ...]
    folds: int
    seed: int
    hidden_labels: float = 0
    unlabelled: bool = False
    dev_pairs: int
    ids: str
    queries: str
    gold: str
    votes: str
    fold: str
    verdicts: dict[str, str] = Field(default_factory=dict)
    segments: dict[str, Segment] = Field(default_factory=dict)

    def column(self, name: str) -> list[str]:
        """Return one of the lists."""
        return str(getattr(self, name)).split()

    def rows_of(self, fold: int) -> list[int]:
        """Return the places of the pairs that `fold` tests."""
        return [i for i, own in enumerate(self.column("fold")) if own == str(fold)]


@dataclass(frozen=True)
class StudyData:
    """A data set with what its runs are made from; `run` is None where only its records are at hand."""

    name: str
    run: Path | None
    labels: LabelSettings
    pairs: StudyPairs


def open_data(data: DataSet, config: StudyConfig) -> StudyData:
    """Read a finished run folder and write its `pairs.json`.

    Raises:
        UserError: the folder is no run's, a stage that the study reads has not finished, or records are of other data.
    """
    saved = data.run / "config.json"
    missing = [stage for stage in READS if not (data.run / stage / MANIFEST).is_file()]
    if missing or not saved.is_file():
        raise UserError(
            f"data.{data.name}: {data.run} lacks {missing[0] if missing else saved.name}. Give the folder of a run "
            "that has finished up to 8-targets: broadfast run CONFIG.toml --to targets."
        )
    settings = read_json(saved)
    labels = _absolute(LabelSettings(**settings["labels"]))
    names = PerspectiveSettings(**settings["perspectives"]).names
    pairs = read_pairs(data, load_scheme(labels.scheme), names, config)
    _check_records(config.records / data.name, pairs)
    write_json(config.records / data.name / INDEX, pairs.model_dump(mode="json"))
    return StudyData(data.name, data.run.resolve(), labels, pairs)


def _check_records(folder: Path, pairs: StudyPairs) -> None:
    """Refuse to add runs on these pairs to records of others, whose tables could not be made any more."""
    if not (folder / INDEX).is_file():
        return
    before = StudyPairs(**read_json(folder / INDEX))
    same = (before.fingerprint, before.scheme) == (pairs.fingerprint, pairs.scheme)
    if not same and any(folder.glob("*.jsonl")):
        raise UserError(
            f"records: {folder} holds runs on other content or labels than data.{folder.name}.run. Give the data set "
            "another name, set other records, or delete that folder."
        )


def reopen_data(data: DataSet, config: StudyConfig) -> StudyData:
    """Return a data set from its records alone: enough for tables, not for runs.

    Raises:
        UserError: there are none, or they are of other folds or of another encoder.
    """
    path = config.records / data.name / INDEX
    if not path.is_file():
        raise UserError(f"records: {path} does not exist. Run the study first, where its run folders are.")
    pairs = StudyPairs(**read_json(path))
    asked = {"folds": config.folds, "seed": config.seed, "hidden_labels": data.hidden_labels}
    for name, value in asked.items():
        if (found := getattr(pairs, name)) != value:
            raise UserError(f"records: {path} has {name} = {found}, not {value}. Set it so, or other records.")
    if pairs.model != _fingerprint_here(config.student.model, pairs.model):
        raise UserError(f"records: {path} is of another encoder than student.model {config.student.model!r}.")
    return StudyData(data.name, None, LabelSettings(), pairs)


def _fingerprint_here(model: str, otherwise: str) -> str:
    """Return the fingerprint of a model; `otherwise` of a folder that this machine does not have."""
    try:
        return model_fingerprint(check_model("student.model", model))
    except UserError:
        return otherwise


def read_pairs(data: DataSet, scheme: Scheme, perspectives: tuple[str, ...], config: StudyConfig) -> StudyPairs:
    """Return the tested pairs of a run folder, dealt to folds; ids are hashed."""
    run, hidden = data.run, data.hidden_labels
    rows = read_table(run / "1-pairs" / "pairs.parquet").sort_by("pair_id").to_pylist()
    judgements = read_table(run / "7-judgements" / "judgements.parquet", ["pair_id", "vote", "verdicts"]).to_pylist()
    judged = {row["pair_id"]: row for row in judgements}
    folds = deal(rows, config.folds, config.seed)
    tested = [row for row in rows if row["query_id"] in folds and row["label"] is not None]
    if not tested or all(row["split"] != "dev" for row in rows):
        raise UserError(f"data: {run} has no test or no dev pairs. Look at the counts of its 1-pairs.")
    numbers = {query: i for i, query in enumerate(dict.fromkeys(row["query_id"] for row in tested))}
    ids = [row["pair_id"] for row in tested]
    unjudged = {"vote": NO_ANSWER, "verdicts": [NO_ANSWER] * len(perspectives)}
    found = [judged.get(pair_id, unjudged) for pair_id in ids]
    return StudyPairs(
        fingerprint=digest([content_digest(run), "hidden", hidden, config.seed], 16) if hidden else content_digest(run),
        model=model_fingerprint(check_model("student.model", config.student.model)),
        scheme=scheme,
        perspectives=perspectives,
        folds=config.folds,
        seed=config.seed,
        hidden_labels=hidden,
        unlabelled=hidden > 0 or any(row["split"] == "unlabelled" for row in rows),
        dev_pairs=sum(row["split"] == "dev" for row in rows),
        ids=" ".join(map(short_id, ids)),
        queries=" ".join(str(numbers[row["query_id"]]) for row in tested),
        gold=" ".join(row["label"] for row in tested),
        votes=" ".join(row["vote"] for row in found),
        fold=" ".join(str(folds[row["query_id"]]) for row in tested),
        verdicts={
            name: " ".join(row["verdicts"][place] or NO_ANSWER for row in found)
            for place, name in enumerate(perspectives)
        },
        segments=segments_of({row["pair_id"]: row for row in rows}, judged, ids),
    )


def short_id(pair_id: str) -> str:
    """Return a pair's id as records hold it."""
    return digest(["pair", pair_id], 10)


def deal(rows: list[dict[str, Any]], folds: int, seed: int) -> dict[str, int]:
    """Return the fold that tests a query: train and test queries in the order of a hash, dealt in turn.

    Dev queries are in no fold: what is chosen on them was never tested. One fold is the run's own test split.
    """
    splits = ("test",) if folds == 1 else ("train", "test")
    queries = {row["query_id"] for row in rows if row["split"] in splits}
    ordered = sorted(queries, key=lambda query: (unit_hash("fold", query, seed), query))
    return {query: i % folds for i, query in enumerate(ordered)}


def fold_folder(run: Path, fold: int, folds: int, seed: int, folder: Path, hidden: float = 0) -> Path:
    """Make `folder` look like a run folder whose split is the fold's; judgements and targets are links.

    Args:
        hidden: the share of queries whose training pairs become unlabelled: the same queries in every fold.
    """
    table = read_table(run / "1-pairs" / "pairs.parquet")
    rows = table.to_pylist()
    tested = deal(rows, folds, seed)
    # A tested query is tested alone: its unlabelled pairs teach nobody in this fold.
    rows = [row for row in rows if folds == 1 or row["label"] is not None or tested.get(row["query_id"]) != fold]
    for row in rows:
        if folds > 1 and row["query_id"] in tested and row["label"] is not None:
            row["split"] = "test" if tested[row["query_id"]] == fold else "train"
        if row["split"] == "train" and unit_hash("hidden", row["query_id"], seed) < hidden:
            row |= {"split": "unlabelled", "label": None}
    write_table(folder / "1-pairs" / "pairs.parquet", pa.Table.from_pylist(rows, PAIR))
    for stage in ("7-judgements", "8-targets"):
        (folder / stage).symlink_to((run / stage).resolve(), target_is_directory=True)
    return folder


def content_digest(run: Path) -> str:
    """Digest of all that a student learns from or is judged by: equal for equal content, wherever it was made."""
    sums = xxhash.xxh3_128()
    for stage, columns in (
        ("1-pairs", PAIR.names),
        ("7-judgements", ["pair_id", "vote", "agreement", "soft", "verdicts"]),
        ("8-targets", ["pair_id", "vectors"]),
    ):
        table = read_table(run / stage / f"{READS[stage]}.parquet", columns).sort_by("pair_id")
        for row in table.to_pylist():
            vectors = row.pop("vectors", ())
            sums.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
            for vector in vectors:
                sums.update(b"none" if vector is None else np.asarray(vector, np.float32).tobytes())
    return sums.hexdigest()[:16]


def _absolute(labels: LabelSettings) -> LabelSettings:
    """Workers run in folders of their own, so they are given a scheme's whole path."""
    if not labels.scheme.endswith(".toml"):
        return labels
    return labels.model_copy(update={"scheme": str(Path(labels.scheme).resolve())})
