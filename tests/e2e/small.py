"""The demo's config with a few rows each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WORKERS = ("sft.train", "preferences", "dpo.train", "targets", "student.train")
SMALL: dict[str, Any] = {
    "cluster.num_cpus": 1,
    "engine.replicas.cpus": 1,
    "engine.replicas.max": 2,  # one fits; it is not bound to all cores, as an engine is that has a machine to itself
    **{f"{section}.workers.cpus_per_worker": 1 for section in WORKERS},
    "source.pairs": 120,
    "rationales.pairs_per_split": 4,
    "samples.samples": 2,
    "samples.pairs_per_split": 10,
    "sft.max_rows": 48,
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
