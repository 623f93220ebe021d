"""The demo's config with a few rows each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "source.pairs": 120,
    "rationales.pairs_per_split": 4,
    "samples.pairs_per_split": 10,
    "sft.max_rows": 96,
    "sft.label_ratio": 50.0,
    "sft.train.epochs": 1,
    "sft.missing_labels": "warn",
    "preferences.max_rows": 24,
    "preferences.label_ratio": 50.0,
    "dpo.train.learning_rate": 0.001,
    "dpo.train.epochs": 2,
    "judge.pairs_per_split": 12,
    "student.train.epochs": 6,
}


def changes() -> list[str]:
    """Return what the command line sets."""
    return [f"--set={name}={value}" for name, value in SMALL.items()]


def no_models() -> bool:
    """Return whether the models that the demo uses are missing."""
    return not (ROOT / "models/smollm2-135m-instruct/config.json").exists()
