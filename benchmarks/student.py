"""Measures what each extractor adds to the inference time of the plain student.

The variants take turns, so that a machine whose speed drifts slows all of them alike.
"""

from __future__ import annotations

import statistics
import time
from argparse import ArgumentParser

import torch
from contest.weights import untrained
from results import Figure, write_results

from distill.config import Extractor, GatExtractor, MlpExtractor, NoExtractor, PolyExtractor
from distill.student.model import Student

PAIRS, TOKENS, ROUNDS = (1, 8, 32, 128), 32, 15
VARIANTS: dict[str, Extractor] = {
    "none": NoExtractor(),
    "mlp": MlpExtractor(),
    "poly": PolyExtractor(),
    "gat": GatExtractor(),
}


def seconds(model: Student, pairs: int) -> float:
    ids = torch.randint(1000, 20000, (pairs, TOKENS))
    mask = torch.ones_like(ids)
    started = time.perf_counter()
    with torch.inference_mode():
        model(ids, mask)
    return time.perf_counter() - started


def main() -> None:
    ArgumentParser(description=__doc__).parse_args()
    models = {name: untrained(extractor).eval() for name, extractor in VARIANTS.items()}
    rows = []
    for pairs in PAIRS:
        for model in models.values():
            seconds(model, pairs)
        taken: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(ROUNDS):
            for name, model in models.items():
                taken[name].append(seconds(model, pairs))
        # The two times of a ratio are measured shortly after one another, and a median ignores a noisy round.
        for name, values in taken.items():
            ratios = [value / plain for value, plain in zip(values, taken["none"], strict=True)]
            median = statistics.median(values)
            overhead = statistics.median(ratios) - 1
            rows.append({"extractor": name, "pairs": pairs, "tokens": TOKENS, "seconds": median, "overhead": overhead})
    at_32 = {row["extractor"]: row["overhead"] for row in rows if row["pairs"] == 32}
    figures = [
        Figure(f"{name}_overhead", at_32[name], "ratio over the plain student at 32 pairs", at_most=limit)
        for name, limit in {"poly": 0.05, "mlp": 0.05, "gat": None}.items()
    ]
    write_results("student", figures, rows)


if __name__ == "__main__":
    main()
