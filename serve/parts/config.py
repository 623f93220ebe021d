"""Settings of the files that replicas write into a folder all the time. Imports nothing heavy."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from cluster.config import Resources


class PartSettings(Resources):
    """When rows that wait in memory are written, and when small files become one."""

    flush_rows: PositiveInt = Field(1000, description="rows that may wait to be written")
    flush_seconds: PositiveFloat = Field(5.0, description="how long a row may wait, at most, to be written")
    part_seconds: PositiveInt = Field(600, le=3600, description="how often the small files of a process become one")
    part_rows: PositiveInt = Field(100_000, description="rows after which they do so earlier")
    max_waiting: PositiveInt = Field(
        20_000, description="rows kept in a replica while the folder cannot be written; then the oldest are lost"
    )
