"""Measures how long the exported student takes in this process on this machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from distill.report.config import ReportSettings
from distill.student.inputs import encode_pairs
from distill.student.model import Student, load_tokenizer

WARM_UP = 5


def measure(export_dir: Path, pairs: Sequence[dict[str, Any]], settings: ReportSettings) -> dict[str, Any]:
    """Time the student on `pairs` from text to label, one pair at a time and then in batches.

    Returns:
        The milliseconds of every single call with their p50, p90 and p99, the milliseconds of every batch, the pairs
        per second in batches, and where they were measured. There is no network, server or queue in them.
    """
    student, tokenizer = Student.load(export_dir), load_tokenizer(export_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student.to(device)
    size = settings.latency_batch_pairs
    singles = [[pairs[i % len(pairs)]] for i in range(settings.latency_singles)]
    batches = [[pairs[(b * size + i) % len(pairs)] for i in range(size)] for b in range(settings.latency_batches)]
    single_ms = timed(student, tokenizer, singles, device)
    batch_ms = timed(student, tokenizer, batches, device)
    return {
        "single_ms": single_ms,
        **{f"p{q}_ms": float(np.percentile(single_ms, q)) for q in (50, 90, 99)},
        "batch_pairs": size,
        "batch_ms": batch_ms,
        "pairs_per_second": 1000 * size / float(np.median(batch_ms)),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "precision": "fp32",
    }


def timed(
    student: Student, tokenizer: PreTrainedTokenizerBase, batches: Sequence[Sequence[dict[str, Any]]], device: str
) -> list[float]:
    """Return the milliseconds of each batch, with its tokenisation, after a few that do not count."""
    taken = []
    for batch in [*batches[:WARM_UP], *batches]:
        started = time.perf_counter()
        inputs = encode_pairs(tokenizer, batch, student.config.max_tokens, student.config.fields).to(device)
        with torch.inference_mode():
            student(**inputs).logits.argmax(-1).tolist()
        taken.append(1000 * (time.perf_counter() - started))
    return taken[min(WARM_UP, len(batches)) :]
