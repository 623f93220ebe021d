"""The frozen sentence encoder of stage 8, which turns texts into vectors, and the Ray Data actors that hold it.

Shapes: N texts, T tokens, H encoder width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from cluster.base.devices import use_gpus
from cluster.base.errors import UserError
from cluster.base.ray_session import stream_parquet
from distill.config import TargetSettings
from distill.student.extractors import masked_mean
from distill.student.model import load_encoder, load_tokenizer
from distill.targets.pooling import pooling_of
from mpcot.records import TARGET

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
