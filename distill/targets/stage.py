"""Stage 8: a frozen sentence encoder turns the teacher's rationales into vectors, one per pair and perspective.

The vectors are stored as the encoder gives them. A transform is a map beside them, fitted on the training pairs, which
the student's rows apply: so a study can fit it anew to each fold's training pairs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.base.errors import UserError
from cluster.base.progress import console, progress
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import table_writer, write_table
from cluster.models.folders import model_to_load
from distill.config import TargetSettings, TargetsStage
from distill.targets.encoder_texts import write_texts
from distill.targets.linear_map import MAP, fit_maps, save_maps, training_pairs
from distill.targets.pooling import pooling_of
from distill.targets.sentence_encoder import embed
from mpcot.records import TARGET
from mpcot.schemes.scheme import load_scheme

# 8-targets/failed.parquet, which is for people to read.
FAILED_TARGET = pa.schema(
    [pa.field("pair_id", pa.string(), nullable=False), pa.field("reason", pa.string(), nullable=False)]
)
NO_RATIONALE = "no perspective has a rationale"


def run(config: TargetsStage, folder: StageFolder) -> None:
    """Embed the rationales of all judged pairs on Ray; write `texts`, `targets` and `failed.parquet`, and a map.

    Every judged pair is in exactly one of the last two files. Pairs without any rationale are the failed ones.

    Raises:
        UserError: the encoder cannot be loaded, or nothing was judged.
    """
    encoder = model_to_load("targets.encoder", config.targets.encoder)
    pooling, reason = pooling_of(config.targets.model_copy(update={"encoder": encoder}))
    console().print(f"  targets: {pooling} pooling, {reason}", highlight=False)
    settings = config.targets.model_copy(update={"encoder": encoder, "pooling": pooling})
    judgements, pairs = folder.input("7-judgements") / "judgements.parquet", folder.input("1-pairs") / "pairs.parquet"
    total = pq.read_metadata(judgements).num_rows
    if not total:
        raise UserError("7-judgements holds no judgements, so there is nothing to embed. Look at its failed.parquet.")
    write_texts(folder.path / "texts.parquet", pairs, judgements, settings, load_scheme(config.labels.scheme))
    counted = _Ledger(len(config.perspectives.names))
    _write_targets(folder.path, settings, counted, total)
    figures = {"width": counted.width, "encoder": config.targets.encoder, "pooling": f"{pooling}, {reason}"}
    (folder.path / MAP).unlink(missing_ok=True)
    if settings.transform != "none":
        maps = fit_maps(folder.path / "targets.parquet", training_pairs(pairs), settings)
        save_maps(folder.path / MAP, maps)
        figures["width"] = maps["vectors"].intercepts.shape[1]
    counts = {"in": total, "ok": counted.ok, "failed": len(counted.failed)}
    folder.finish(counts, figures | {"missing_vectors": counted.missing})


def _write_targets(folder: Path, settings: TargetSettings, counted: _Ledger, total: int) -> None:
    """Embed `texts.parquet`, and write what has a vector and what failed."""
    with (
        progress("targets", unit="pair", total=total) as bar,
        table_writer(folder / "targets.parquet", TARGET) as writer,
    ):
        for table in embed(folder / "texts.parquet", settings):
            writer.write_table(counted.keep(table))
            bar.update(counted.ok + len(counted.failed))
    failed = {"pair_id": counted.failed, "reason": [NO_RATIONALE] * len(counted.failed)}
    write_table(folder / "failed.parquet", pa.table(failed, schema=FAILED_TARGET))
    if counted.ok + len(counted.failed) != total:
        raise UserError(
            f"8-targets: {total} judgements in, {counted.ok} targets and {len(counted.failed)} failed out. Run again."
        )
    if not counted.ok:
        raise UserError("7-judgements holds no rationales, so there are no targets. Look at its failed.parquet.")


class _Ledger:
    """Counts the stage's rows while tables stream through."""

    def __init__(self, perspectives: int) -> None:
        self.perspectives = perspectives
        self.ok = self.missing = self.width = 0
        self.failed: list[str] = []

    def keep(self, table: pa.Table) -> pa.Table:
        """Return the rows that have a vector; count them, the missing vectors and the failed pairs."""
        vectors = pc.list_flatten(table["vectors"])
        valid = np.asarray(vectors.is_valid()).reshape(len(table), self.perspectives)
        present = pa.array(valid.any(axis=1))
        kept = table.filter(present)
        if len(kept):
            self.width = len(vectors.drop_null()[0])
        self.ok += len(kept)
        self.missing += int((~valid[valid.any(axis=1)]).sum())
        self.failed += table.filter(pc.invert(present))["pair_id"].to_pylist()
        return kept.cast(TARGET)
