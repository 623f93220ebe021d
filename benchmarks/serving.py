"""Compares the scorer with the cross-encoders of other libraries, on the same weights, pairs and cores.

Each contestant is a process of its own. They take turns, so that a machine whose speed drifts slows all of them alike,
and figures are medians over rounds. Tokenising counts: text goes in and probabilities come out.
`--peer-python` names an interpreter with sentence-transformers and its ONNX and OpenVINO backends, `--infinity-python`
one with infinity-emb; both need another version of transformers than this project. Contestants without an interpreter
are left out, and the output says so.
"""

from __future__ import annotations

import statistics
import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest.contestant import KINDS, THREADS
from contest.running import Contestant
from contest.weights import HELD_OUT, ROOT, Pairs, make_pairs_of_real_length, prepare
from results import Figure, write_results
from sklearn.metrics import f1_score

from cluster.base.processor import inference_precision
from distill.student.model import Student, load_tokenizer
from distill.student.predict import predict
from serve.config import ServeSettings
from serve.scoring.scorer import Scorer

REQUESTS = {1: 24, 10: 8, 50: 2, 200: 1}  # products of a request, requests of a round
OF_PEER = ("sentence-transformers ONNX", "sentence-transformers ONNX int8", "sentence-transformers OpenVINO")
OF_INFINITY = ("infinity fp32", "infinity bf16")
OURS, THEIRS = "scorer", "sentence-transformers fp32"
BULK = 200
PAUSE_S = 1.5  # threads of others stay busy for a while after their turn, vLLM's for most of a second


def start_all(folder: Path, interpreters: dict[str, str | None]) -> list[Contestant]:
    """Start all contestants that can be started, and print why the others cannot."""
    running = []
    for kind in KINDS:
        python = interpreters.get(kind, sys.executable)
        if python is None:
            print(f"left out: {kind}: no interpreter is named for it")
            continue
        contestant = Contestant.start(kind, "contestant.py", kind, str(folder), python=python)
        if "ready" in (said := contestant.hear()):
            running.append(contestant)
        else:
            print(f"left out: {kind}: {said['missing']}")
    return running


def race(contestants: Sequence[Contestant], pairs: Pairs) -> None:
    """Run one round, in which all contestants take turns at the same requests."""
    for size, count in REQUESTS.items():
        asked = [len(pairs) - HELD_OUT + i * size for i in range(count)]
        for contestant in contestants:
            time.sleep(PAUSE_S)
            contestant.taken.setdefault(size, []).append(contestant.ask(time=asked, size=size))


def useful_flops(student: Student, pairs: Pairs) -> float:
    """Return the floating-point operations of the encoder's matrix products per pair, without padding.

    Per layer and token they are 2(4H^2 + 2HI) for the projections and 4TH for attention; a multiply-add counts as two.
    """
    config = student.encoder.config
    width, inner = config.hidden_size, config.intermediate_size
    tokenizer = load_tokenizer(ROOT / "models" / "all-minilm-l6-v2")
    texts = [f"{pair['title']} {pair['description']}" for pair in pairs]
    lengths = np.array([len(ids) for ids in tokenizer([pair["query"] for pair in pairs], texts)["input_ids"]])
    per_pair = 2 * (4 * width**2 + 2 * width * inner) * lengths + 4 * lengths**2 * width
    return float(config.num_hidden_layers * per_pair.mean())


def macro_f1_loss(folder: Path, pairs: Pairs) -> float:
    """Return the points of macro-F1 on the catalogue's labels that the served precision loses to float32."""
    student, gold = Student.load(folder / "export"), [pair["label"] for pair in pairs]
    codes = student.config.scheme.codes
    plain = predict(student, load_tokenizer(folder / "export"), pairs).probabilities
    served = Scorer.load(folder / "export", ServeSettings(cpus_per_replica=THREADS)).score(pairs).probabilities
    scores = [f1_score(gold, [codes[i] for i in found.argmax(1)], average="macro") for found in (plain, served)]
    print(f"macro-F1 of the float32 student {scores[0]:.4f}, as served {scores[1]:.4f}")
    return 100 * float(scores[0] - scores[1])


def rows_of(contestants: Sequence[Contestant]) -> list[dict[str, Any]]:
    """Return one row for each contestant and size."""
    rows = []
    for contestant in contestants:
        for size, rounds in contestant.taken.items():
            ms = 1000 * np.array([second for seconds in rounds for second in seconds])
            p50, p99 = np.percentile(ms, (50, 99))
            row = {"contestant": contestant.kind, "products": size, "requests": len(ms)}
            rows.append(row | {"pairs_per_s": contestant.rate(size), "p50_ms": p50, "p99_ms": p99})
    return rows


def figures_of(found: dict[str, Contestant], shares: Sequence[float], loss: float) -> list[Figure]:
    """Return the ratios at 200 products a request, most of which have goals, and those of smaller requests."""
    ours = found[OURS]

    def over(other: Contestant, size: int) -> float:
        return statistics.median(a / b for a, b in zip(ours.rates(size), other.rates(size), strict=True))

    peers = [c for kind, c in found.items() if not kind.startswith(OURS)]
    best = max(peers, key=lambda c: c.rate(BULK))
    ratio, share = over(found[THEIRS], BULK), statistics.median(shares)
    unit = "times the pairs/s"
    figures = [
        Figure("scorer_over_sentence_transformers", ratio, f"{unit} of fp32, 200 products", at_least=3),
        Figure("scorer_over_best_peer", over(best, BULK), f"{unit} of {best.kind}, 200 products"),
        Figure("share_of_matrix_limit", share, "of a 2048 product's rate, real tokens", at_least=0.6),
        Figure("macro_f1_loss_points", loss, "points against float32", at_most=0.3),
    ]
    for size in (1, 10, 50):
        near = max(peers, key=lambda c: c.rate(size))
        figures.append(Figure(f"over_sentence_transformers_at_{size}", over(found[THEIRS], size), unit))
        figures.append(Figure(f"over_best_peer_at_{size}", over(near, size), f"{unit} of {near.kind}"))
    return figures


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", help="interpreter with sentence-transformers' ONNX and OpenVINO backends")
    parser.add_argument("--infinity-python", help="interpreter with infinity-emb")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="start no further round after that; at least one is run"
    )
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    end = time.monotonic() + 60 * options.minutes
    pairs = make_pairs_of_real_length()
    folder, held_out = prepare(pairs), pairs[-HELD_OUT:]
    loss = macro_f1_loss(folder, held_out)
    flops = useful_flops(Student.load(folder / "export"), held_out)
    interpreters = dict.fromkeys(OF_PEER, options.peer_python) | dict.fromkeys(OF_INFINITY, options.infinity_python)
    contestants = start_all(folder, interpreters)
    found = {contestant.kind: contestant for contestant in contestants}
    limits = []
    race(contestants, pairs)
    for contestant in contestants:
        contestant.taken.clear()  # the first round warms up
    while len(limits) < options.rounds and (not limits or time.monotonic() < end):
        race(contestants, pairs)
        limits.append(1e9 * found[OURS].ask(matrix=inference_precision("auto", gpu=False)))
    shares = [rate * flops / limit for rate, limit in zip(found[OURS].rates(BULK), limits, strict=True)]
    write_results("serving", figures_of(found, shares, loss), rows_of(contestants))
    for contestant in contestants:
        contestant.stop()


if __name__ == "__main__":
    main()
