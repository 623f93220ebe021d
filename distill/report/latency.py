"""Times the exported student in this process, on this machine."""

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
    """Time the student on `pairs`, text to label: one pair at a time, then in batches.

    Returns:
        Milliseconds of every single call, their p50, p90 and p99, milliseconds of every batch, pairs per
        second in batches, and where it was measured. No network, server or queue is in it.
    """
    student, tokenizer = Student.load(export_dir), load_tokenizer(export_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student.to(device)
    size = settings.latency_batch_pairs
    singles = [[pairs[i % len(pairs)]] for i in range(settings.latency_singles)]
    batches = [[pairs[(b * size + i) % len(pairs)] for i in range(size)] for b in range(settings.latency_batches)]
    single_ms = timed(student, tokenizer, singles, device)
    batch_ms = timed(student, tokenizer, batches, device)
    p50, p90, p99 = (float(np.percentile(single_ms, q)) for q in (50, 90, 99))
    return {
        "single_ms": single_ms,
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
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
    """Milliseconds of each batch, tokenising included, after a few that do not count."""
    taken = []
    for batch in [*batches[:WARM_UP], *batches]:
        started = time.perf_counter()
        inputs = encode_pairs(tokenizer, batch, student.config.max_tokens, student.config.fields).to(device)
        with torch.inference_mode():
            student(**inputs).logits.argmax(-1).tolist()
        taken.append(1000 * (time.perf_counter() - started))
    return taken[min(WARM_UP, len(batches)) :]
