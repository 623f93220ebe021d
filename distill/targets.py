"""Stage 8: a frozen sentence encoder turns the teacher's rationales into vectors, one per pair and perspective.

The vectors are stored as the encoder gives them. A transform is a map beside them, fitted on the training pairs, which
the student's rows apply: so a study can fit it anew to each fold's training pairs.

Shapes: N texts, T tokens, H encoder width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional

from cluster.base.devices import use_gpus
from cluster.base.errors import UserError
from cluster.base.progress import console, progress
from cluster.base.ray_session import stream_parquet
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import table_writer, write_table
from cluster.models.folders import check_model
from distill.config import TargetSettings, TargetsStage
from distill.pooling import pooling_of
from distill.student.extractors import masked_mean
from distill.student.model import load_encoder, load_tokenizer
from distill.target_map import MAP, fit_maps, save_maps, training_pairs
from distill.target_texts import write_texts
from mpcot.records import TARGET
from mpcot.schemes.scheme import load_scheme

# 8-targets/failed.parquet, which is for people to read.
FAILED_TARGET = pa.schema(
    [pa.field("pair_id", pa.string(), nullable=False), pa.field("reason", pa.string(), nullable=False)]
)
NO_RATIONALE = "no perspective has a rationale"
PER_PAIR = ("query", "title")  # the columns of TARGET with one vector


class SentenceEncoder:
    """Ray Data actor with a frozen encoder: it takes batches of judgements and returns batches of targets."""

    def __init__(self, settings: TargetSettings) -> None:
        use_gpus(settings.workers.gpus_per_worker)
        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(settings.workers.cpus_per_worker)
        self.tokenizer = load_tokenizer(settings.encoder)
        model: Any = load_encoder(settings.encoder)
        self.model = model.to(self.device).eval().requires_grad_(False)
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions and settings.max_tokens > positions:
            raise UserError(f"targets.max_tokens: {settings.max_tokens} is more than the encoder's {positions}")
        if settings.precision == "bf16":
            self.model = self.model.bfloat16()
        self.width: int = self.model.config.hidden_size
        self.pooling = pooling_of(settings)[0]

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Turn a table of `TARGET_TEXT` rows into `TARGET` rows in the same order.

        The vector of a missing or blank text is null.
        """
        columns: dict[str, Any] = {"pair_id": batch["pair_id"]}
        for name in TARGET.names[1:]:
            rows = batch[name].to_pylist()
            columns[name] = self._column([[row] for row in rows]) if name in PER_PAIR else self._column(rows)
            if name in PER_PAIR:
                columns[name] = [one[0] for one in columns[name]]
        return pa.table(columns, schema=TARGET)

    def _column(self, rows: list[list[str | None] | None]) -> list[list[Any] | None]:
        places = [(i, p) for i, row in enumerate(rows) for p, text in enumerate(row or ()) if text and text.strip()]
        vectors = self.encode([rows[i][p] for i, p in places])  # type: ignore[index,misc]
        out: list[list[Any] | None] = [None if row is None else [None] * len(row) for row in rows]
        for (i, p), vector in zip(places, vectors, strict=True):
            out[i][p] = vector  # type: ignore[index]
        return out

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return NxH float32 vectors. Texts longer than `max_tokens` lose their end."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.zeros((len(texts), self.width), np.float32)
        for start in range(0, len(order), self.settings.batch_size):
            chosen = order[start : start + self.settings.batch_size]
            vectors[chosen] = self._forward([texts[i] for i in chosen]).cpu().numpy()
        return vectors

    @torch.inference_mode()
    def _forward(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            texts, truncation=True, max_length=self.settings.max_tokens, padding=True, return_tensors="pt"
        ).to(self.device)
        states = self.model(**tokens).last_hidden_state.float()
        pooled = states[:, 0] if self.pooling == "cls" else masked_mean(states, tokens["attention_mask"])
        return functional.normalize(pooled, dim=-1) if self.settings.normalise else pooled


def run(config: TargetsStage, folder: StageFolder) -> None:
    """Embed the rationales of all judged pairs on Ray; write `texts`, `targets` and `failed.parquet`, and a map.

    Every judged pair is in exactly one of the last two files. Pairs without any rationale are the failed ones.

    Raises:
        UserError: the encoder cannot be loaded, or nothing was judged.
    """
    encoder = check_model("targets.encoder", config.targets.encoder)
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


def embed(
    texts: Path, settings: TargetSettings, encoder: type[SentenceEncoder] = SentenceEncoder
) -> Iterator[pa.Table]:
    """Yield the tables that Ray Data's actors of `encoder` make of a file's rows, in their order."""
    import ray

    workers = settings.workers
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    rows = stream_parquet(texts)
    done = rows.map_batches(
        encoder,
        fn_constructor_args=(settings,),
        batch_size=settings.batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers.count),
        num_cpus=workers.cpus_per_worker,
        num_gpus=workers.gpus_per_worker,
    )
    yield from done.iter_batches(batch_size=None, batch_format="pyarrow")


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
