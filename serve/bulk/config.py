"""Settings of `broadfast score`, which scores whole tables. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from cluster.config import Resources
from mpcot.sources.config import Share


class BulkSettings(Resources):
    """Copies of the student that score a table, and how it is divided among them."""

    replicas: PositiveInt | None = Field(
        None, description="copies of the student; empty takes as many as the CPUs or GPUs of the cluster hold"
    )
    cpus_per_replica: PositiveInt = Field(1, description="CPUs of a copy, and threads of its model")
    gpus_per_replica: NonNegativeFloat = Field(0.0, description="GPUs of a copy; 0 scores on CPUs")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="number format of the encoder; auto is bf16 where the hardware multiplies it"
    )
    rows_per_part: PositiveInt = Field(
        4096, description="rows that are scored and written together; a killed copy loses no more than these"
    )
    max_failed_share: Share = Field(0.2, description="the command fails in the end if a larger share of the rows fails")
