"""Settings of stage 11. Imports nothing heavy."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PositiveInt

from cluster.config import Fields, Settings
from distill.config import TargetSettings
from mpcot.config import PerspectiveSettings
from mpcot.sources.config import LabelSettings


class ReportSettings(Settings):
    """What the report shows, and how often it measures."""

    samples: PositiveInt = Field(12, description="test pairs shown with the teacher's rationales")
    bootstrap_resamples: PositiveInt = Field(2000, description="resamples of queries for the paired interval")
    latency_singles: PositiveInt = Field(200, description="single pairs timed")
    latency_batches: PositiveInt = Field(10, description="batches timed")
    latency_batch_pairs: PositiveInt = Field(32, description="pairs in a timed batch")


class ReportStage(Settings):
    """What `11-report` depends on. The encoder of the targets embeds queries and titles, to compare latents with."""

    reads_only: ClassVar[Fields] = {"targets": ("pooling", "normalise", "max_tokens", "precision")}

    name: str
    seed: int
    labels: LabelSettings
    perspectives: PerspectiveSettings
    targets: TargetSettings
    report: ReportSettings
