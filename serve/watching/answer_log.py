"""Keeps a sample of the answered requests with their texts, in parts by the hour, for `broadfast watch`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from mpcot.records import ATTRIBUTES, texts
from serve.http.schemas import ScoreInput, ScoreResponse
from serve.parts.part_log import PartLog, open_parts
from serve.watching.config import AnswerLogSettings

ANSWERS = "logged answers"  # what they are called in messages
PRODUCT = ("title", "brand", "description", "bullets", "attributes")

# answer log -> `broadfast watch`, `broadfast roll --judge`. One row per pair, with the texts as they were sent.
# `probabilities` are by label.
LOGGED = pa.schema(
    [
        *texts("request_id", "model"),
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
        *texts("query", "product_id", "title", "brand?", "description?", "bullets?"),
        ATTRIBUTES,
        *texts("label"),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("probabilities", pa.map_(pa.string(), pa.float32()), nullable=False),
    ]
)


class AnswerLog(PartLog):
    """The log of a replica, whichever export answers."""

    def __init__(self, settings: AnswerLogSettings, on_lost: Callable[[int], None] | None = None) -> None:
        super().__init__(settings.folder, LOGGED, settings, ANSWERS, on_lost)
        self.share, self.draw = settings.share, random.Random()

    def note(self, request: ScoreInput, request_id: str, response: ScoreResponse) -> None:
        """Keep all pairs of an answered request, or none."""
        if self.draw.random() < self.share:
            self.extend(list(_rows(request, request_id, response)))


def _rows(request: ScoreInput, request_id: str, response: ScoreResponse) -> Iterator[dict[str, Any]]:
    now = datetime.now(UTC)
    for product, result in zip(request.products, response.results, strict=True):
        fields = {name: getattr(product, name) for name in PRODUCT}
        asked = {"request_id": request_id, "model": response.model, "at": now, "query": request.query}
        answered = {"label": result.label, "score": result.score, "probabilities": result.probabilities}
        yield asked | {"product_id": result.id} | fields | answered


def open_answers(path: Path, since: datetime | None = None) -> pads.Dataset:
    """Return the logged answers of a folder; it raises as `open_parts` does."""
    return open_parts(path, LOGGED, ANSWERS, since)
