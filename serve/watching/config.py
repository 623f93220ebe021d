"""Settings of the log of answers, which a teacher can judge afterwards. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PositiveInt

from serve.parts.config import PartSettings


class AnswerLogSettings(PartSettings):
    """A sample of the answered requests, with what shoppers typed: see to it that you may keep that."""

    folder: Path = Field(description="where the texts and labels of pairs are written; all replicas may share it")
    share: float = Field(0.01, gt=0, le=1, description="share of the answered requests that are written, by chance")
    part_rows: PositiveInt = Field(10_000, description="rows, which hold texts, after which small files become one")
    max_waiting: PositiveInt = Field(
        5_000, description="pairs kept in a replica while the folder cannot be written; then the oldest are lost"
    )
