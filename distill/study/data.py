"""A data set of a study: its folds by query, a digest of its content, and what the tables need to know of its pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from cluster.base.errors import UserError
from cluster.base.stage_folder import MANIFEST, digest, read_json, write_json
from cluster.base.tables import read_table, write_table
from cluster.config import Settings
from cluster.models.folders import check_model, model_fingerprint
from cluster.training.arrow_rows import ArrowRows
from distill.report.segments import Pairs, agreement_of, asked_elsewhere
from distill.study.config import DataSet, StudyConfig
from distill.study.folds import assign_folds, kept_together
from mpcot.config import PerspectiveSettings
from mpcot.records import PAIR
from mpcot.schemes.scheme import Scheme, load_scheme
from mpcot.sources.config import Kept, LabelSettings

READS = {"1-pairs": "pairs", "7-judgements": "judgements", "8-targets": "targets"}
JUDGED = ["pair_id", "vote", "agreement", "soft", "verdicts", "rationales", "perspective_soft"]
HEADER, TABLE = "pairs.json", "pairs.parquet"

# RECORDS/DATA/pairs.parquet: every tested pair without its text. Queries are numbered. The vote and the verdicts are
# null where the teacher gave none; verdicts and segments are in the order of the names in pairs.json. The teacher was
# fine-tuned on pairs that it has `seen`.
TESTED_PAIR = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("query", pa.int32(), nullable=False),
        pa.field("gold", pa.string(), nullable=False),
        pa.field("vote", pa.string()),
        pa.field("fold", pa.int32(), nullable=False),
        pa.field("seen", pa.bool_(), nullable=False),
        pa.field("verdicts", pa.list_(pa.string()), nullable=False),
        pa.field("segments", pa.list_(pa.string()), nullable=False),
    ]
)


class StudyPairs(Settings):
    """What the tables need of a data set, kept beside its records in `pairs.json` and, `tested`, in `pairs.parquet`.

    Together with the records it is enough to make every table on a machine that does not have the run folder.
    `fingerprint` is a digest of the data's content, of what is hidden and of folds by more than the query, `model`
    one of the starting encoder. `unlabelled` says whether a student trains on pairs without a label, `kept_together`
    what kept queries in one fold. `tested` holds `TESTED_PAIR` rows.
    """

    fingerprint: str
    model: str
    scheme: Scheme
    perspectives: tuple[str, ...]
    segments: tuple[str, ...] = ()
    folds: int
    seed: int
    hidden_labels: float = 0
    hidden_unlabelled: float = 0
    unlabelled: bool = False
    kept_together: tuple[Kept, ...] = ()
    dev_pairs: int
    tested: list[dict[str, Any]]

    def column(self, name: str) -> list[Any]:
        """Return one column of the tested pairs."""
        return [pair[name] for pair in self.tested]

    def tested_in(self, fold: int) -> list[int]:
        """Return the row numbers of the pairs that `fold` tests."""
        return [row for row, pair in enumerate(self.tested) if pair["fold"] == fold]

    def write(self, folder: Path) -> None:
        """Write both files, the header last."""
        write_table(folder / TABLE, pa.Table.from_pylist(self.tested, TESTED_PAIR))
        write_json(folder / HEADER, self.model_dump(mode="json", exclude={"tested"}))

    @classmethod
    def read(cls, folder: Path) -> StudyPairs:
        """Read both files."""
        return cls(**read_json(folder / HEADER), tested=read_table(folder / TABLE).to_pylist())


@dataclass(frozen=True)
class StudyData:
    """A data set and what its runs are made from. `run` is None where only its records are available."""

    name: str
    run: Path | None
    labels: LabelSettings
    pairs: StudyPairs


def open_data(data: DataSet, config: StudyConfig) -> StudyData:
    """Read a finished run folder, and write what the tables need of it beside the records.

    Raises:
        UserError: the folder does not belong to a run, a stage that the study reads has not finished, or the records
            are of other data.
    """
    saved = data.run / "config.json"
    missing = [stage for stage in READS if not (data.run / stage / MANIFEST).is_file()]
    if missing or not saved.is_file():
        raise UserError(
            f"data.{data.name}: {data.run} lacks {missing[0] if missing else saved.name}. Give the folder of a run "
            "that has finished up to 8-targets: broadfast run CONFIG.toml --to targets."
        )
    settings = read_json(saved)
    labels = _with_absolute_path(LabelSettings(**settings["labels"]))
    names = PerspectiveSettings(**settings["perspectives"]).names
    folder = config.records / data.name
    kept = kept_together(settings, read_json(folder / HEADER) if has_runs(folder) else None)
    pairs = read_pairs(data, load_scheme(labels.scheme), names, config, kept)
    _check_records(folder, pairs)
    pairs.write(folder)
    return StudyData(data.name, data.run.resolve(), labels, pairs)


def has_runs(folder: Path) -> bool:
    """Return whether the records of a data set hold finished runs."""
    return (folder / HEADER).is_file() and any(folder.glob("*.jsonl"))


def _check_records(folder: Path, pairs: StudyPairs) -> None:
    """Refuse to add runs on these pairs to the records of other pairs, whose tables would be lost."""
    if not has_runs(folder):
        return
    before = read_json(folder / HEADER)
    if (before["fingerprint"], Scheme(**before["scheme"])) != (pairs.fingerprint, pairs.scheme):
        raise UserError(
            f"records: {folder} holds runs on other content or labels than data.{folder.name}.run. Give the data set "
            "another name, set records to another folder, or delete this one."
        )


def reopen_data(data: DataSet, config: StudyConfig) -> StudyData:
    """Return a data set from its records alone, which is enough for the tables but not for new runs.

    Raises:
        UserError: there are no records, or they are of other folds or of another encoder.
    """
    path = config.records / data.name / HEADER
    if not path.is_file():
        raise UserError(f"records: {path} does not exist. Run the study first, where its run folders are.")
    pairs = StudyPairs.read(path.parent)
    asked = {"folds": config.folds, "seed": config.seed}
    asked |= {name: getattr(data, name) for name in ("hidden_labels", "hidden_unlabelled")}
    for name, value in asked.items():
        if (found := getattr(pairs, name)) != value:
            raise UserError(f"records: {path} has {name} = {found}, not {value}. Set it so, or choose other records.")
    try:
        model = model_fingerprint(check_model("student.model", config.student.model))
    except UserError:  # The encoder is not on this machine, and tables do not need it.
        model = pairs.model
    if pairs.model != model:
        raise UserError(f"records: {path} is of another encoder than student.model {config.student.model!r}.")
    return StudyData(data.name, None, LabelSettings(), pairs)


def read_pairs(
    data: DataSet, scheme: Scheme, perspectives: tuple[str, ...], config: StudyConfig, kept: tuple[Kept, ...] = ()
) -> StudyPairs:
    """Return the tested pairs of a run folder with their folds; ids are hashed."""
    run, hidden = data.run, data.hidden_labels
    rows = read_table(run / "1-pairs" / "pairs.parquet").sort_by("pair_id").to_pylist()
    judgements = read_table(run / "7-judgements" / "judgements.parquet", ["pair_id", "vote", "verdicts"]).to_pylist()
    judged = {row["pair_id"]: row for row in judgements}
    folds = assign_folds(rows, config.folds, config.seed, kept)
    tested = [row for row in rows if row["query_id"] in folds and row["label"] is not None]
    dev_pairs = sum(row["split"] == "dev" for row in rows)
    if not tested or not dev_pairs:
        raise UserError(f"data: {run} has no test or no dev pairs. Look at the counts of its 1-pairs.")
    numbers = {query: i for i, query in enumerate(dict.fromkeys(row["query_id"] for row in tested))}
    segments = _segments({row["pair_id"]: row for row in rows}, judged, [row["pair_id"] for row in tested])
    seen = seen_by_teacher(run)
    unjudged = {"vote": None, "verdicts": [None] * len(perspectives)}
    fingerprint = content_digest(run)
    if folds != assign_folds(rows, config.folds, config.seed):  # runs on these folds are not those on others
        fingerprint = digest([fingerprint, "kept together", kept], 16)
    for what, share in (("hidden", hidden), ("hidden unlabelled", data.hidden_unlabelled)):
        fingerprint = digest([fingerprint, what, share, config.seed], 16) if share else fingerprint
    return StudyPairs(
        fingerprint=fingerprint,
        model=model_fingerprint(check_model("student.model", config.student.model)),
        scheme=scheme,
        perspectives=perspectives,
        segments=tuple(segments),
        folds=config.folds,
        seed=config.seed,
        hidden_labels=hidden,
        hidden_unlabelled=data.hidden_unlabelled,
        unlabelled=hidden > 0 or any(row["split"] == "unlabelled" for row in rows),
        kept_together=kept,
        dev_pairs=dev_pairs,
        tested=[
            {
                "id": hashed_id(row["pair_id"]),
                "query": numbers[row["query_id"]],
                "gold": row["label"],
                "fold": folds[row["query_id"]],
                "seen": row["pair_id"] in seen,
                **{name: judged.get(row["pair_id"], unjudged)[name] for name in ("vote", "verdicts")},
                "segments": [values.get(row["pair_id"]) for values in segments.values()],
            }
            for row in tested
        ],
    )


def _segments(pairs: Pairs, judged: Pairs, ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return each segment's value by pair id. A segment with a single value tells nothing and is left out.

    They were fixed before any run: where reasoning should help if it helps at all.
    """
    kinds: dict[str, Callable[[dict[str, Any]], str | None]] = {
        "words of the query": lambda row: "5 or more" if len(row["query"].split()) >= 5 else "1 to 4",
        "perspectives": lambda row: agreement_of(judged.get(row["pair_id"], {}).get("verdicts", ())),
        "asked for outside the title": lambda row: "yes" if asked_elsewhere(row) else "no",
    }
    found = {}
    for segment, value_of in kinds.items():
        values = {pair_id: value for pair_id in ids if (value := value_of(pairs[pair_id])) is not None}
        if len(set(values.values())) > 1:
            found[segment] = values
    return found


def seen_by_teacher(run: Path) -> set[str]:
    """Return the pairs that the run's teacher was fine-tuned on; none if it was not trained in this run."""
    path = run / "3-sft" / "train.arrow"
    return set(ArrowRows(path).table["pair_id"].to_pylist()) if path.is_file() else set()


def hashed_id(pair_id: str) -> str:
    """Return a pair's id as the records hold it."""
    return digest(["pair", pair_id], 10)


def content_digest(run: Path) -> str:
    """Return a digest of everything that a student learns from or is judged by; equal content has an equal digest.

    Of the target vectors it takes what they are made from and how, and of probabilities six digits: processors differ
    in the last bits of both, and records are to serve on all of them.
    """
    sums = xxhash.xxh3_128()
    written = pq.read_schema(run / "1-pairs" / "pairs.parquet").names  # earlier versions wrote fewer columns
    for stage, columns in (("1-pairs", [name for name in PAIR.names if name in written]), ("7-judgements", JUDGED)):
        table = read_table(run / stage / f"{READS[stage]}.parquet", columns).sort_by("pair_id")
        for row in table.to_pylist():
            sums.update(json.dumps(_rounded(row), sort_keys=True, ensure_ascii=False).encode())
    made = read_json(run / "8-targets" / MANIFEST)["settings"]
    how = {name: value for name, value in made["targets"].items() if name not in ("encoder", "controls")}
    sums.update(digest([how, made["content"]["targets.encoder"]]).encode())
    return sums.hexdigest()[:16]


def _rounded(value: Any) -> Any:
    """Return the value with all numbers in it rounded to six digits."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return {name: _rounded(one) for name, one in value.items()} if isinstance(value, dict) else value


def _with_absolute_path(labels: LabelSettings) -> LabelSettings:
    """Return the settings with an absolute path to the scheme, because workers run in folders of their own."""
    if not labels.scheme.endswith(".toml"):
        return labels
    return labels.model_copy(update={"scheme": str(Path(labels.scheme).resolve())})
