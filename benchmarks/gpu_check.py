"""Measures on one GPU what was only computed so far: the scorer, training steps, and memory against `broadfast plan`.

It needs torch and transformers alone, no model folder and no network, and takes some minutes on a card. Without a GPU
it does the same with tiny models, to see that it runs, and keeps no figures.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_check_arms import (
    CARD,
    SMALL,
    Graphed,
    HalfStudent,
    Sizes,
    dpo_step,
    encoder_config,
    forward_operations,
    make_pairs,
    make_student,
    make_teacher,
    make_tokenizer,
    matrix_rate,
    seconds,
    sft_step,
    student_step,
    teacher_batch,
)
from results import Figure, show_results, write_results

from cluster.config import TrainSettings
from cluster.gpus.memory import GB, Training, inference_memory, training_memory
from cluster.models.size import ModelSize, shape_of
from serve.scoring.scorer import BATCH_TOKENS, Scorer

Row = dict[str, Any]
STEPS: dict[str, tuple[Callable[..., Callable[[], float]], int]] = {"sft": (sft_step, 3), "dpo": (dpo_step, 2)}


def size_of(model: Any, config: Any) -> ModelSize:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    architecture = {"architectures": [type(model).__name__]}
    return ModelSize(parameters=parameters, **shape_of(config.to_dict() | architecture))


def peak_gb(sizes: Sizes) -> float | None:
    """Return the most memory that tensors took since it was last asked for, and begin anew; None on a CPU."""
    if sizes.device != "cuda":
        return None
    found = torch.cuda.max_memory_allocated() / GB
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return found


def score_row(arm: str, scorer: Any, pairs: list[Any], rate: float, sizes: Sizes) -> Row:
    """Return how long a call of `scorer` takes for all pairs, tokenising included."""
    times = seconds(lambda: scorer(pairs), sizes)
    lengths = [len(f"{p['query']} {p['title']}".split()) + 3 for p in pairs]
    config = encoder_config(sizes)
    work = sum(forward_operations(config, length, length) for length in lengths)
    middle = median(times)
    return {
        "arm": arm, "pairs": len(pairs), "pairs_per_s": len(pairs) / middle, "p50_ms": 1000 * middle,
        "share_of_matrix_rate": work / middle / rate, "peak_gb": peak_gb(sizes),
    }  # fmt: skip


def scorers(sizes: Sizes, folder: Path) -> Iterator[tuple[str, Callable[[list[Any]], object]]]:
    """Yield the scorers to compare: as it is served, with CUDA graphs, and sentence-transformers if it is there."""
    device = sizes.device
    precision: Any = "bf16" if device == "cuda" else "fp32"
    served = Scorer(make_student(sizes), make_tokenizer(), "served", precision=precision, device=device)
    yield "served", served.score
    if device == "cuda":
        graphed = Scorer(make_student(sizes), make_tokenizer(), "graphed", precision=precision, device=device)
        graphed.model = Graphed(HalfStudent(make_student(sizes).to(device)))
        yield "graphs", graphed.score
    if (peer := cross_encoder(sizes, folder)) is not None:
        yield "sentence_transformers", lambda pairs: peer.predict([(p["query"], p["title"]) for p in pairs])


def cross_encoder(sizes: Sizes, folder: Path) -> Any:
    """Return a cross-encoder of sentence-transformers of the same size and format, or None without that library."""
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        return None
    from transformers import BertForSequenceClassification

    config = encoder_config(sizes)
    config.num_labels = 4
    BertForSequenceClassification(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return CrossEncoder(str(folder), device=sizes.device, max_length=128, model_kwargs={"dtype": sizes.dtype})


def score(sizes: Sizes) -> Iterator[Row]:
    """Yield a row per scorer and number of pairs."""
    rate = matrix_rate(sizes)
    planned = inference_memory(size_of(make_student(sizes), encoder_config(sizes)), 4, BATCH_TOKENS[sizes.device])
    with tempfile.TemporaryDirectory() as folder:
        for arm, scorer in scorers(sizes, Path(folder)):
            peak_gb(sizes)
            for count in sizes.pairs:
                row = score_row(arm, scorer, make_pairs(count), rate, sizes)
                yield row | {"planned_gb": (planned.total - planned.reserve) / GB if arm == "served" else None}


def step_row(arm: str, step: Callable[[], float], planned: Training, size: ModelSize, units: int, sizes: Sizes) -> Row:
    """Return the speed, first loss and memory of a training step; the plan's reserve is not what tensors take."""
    loss = step()
    times = seconds(step, sizes)
    memory = training_memory(size, planned)
    return {
        "arm": arm, "pairs": units, "pairs_per_s": units / median(times), "p50_ms": 1000 * median(times),
        "loss": loss, "peak_gb": peak_gb(sizes), "planned_gb": (memory.total - memory.reserve) / GB,
    }  # fmt: skip


def train_student(sizes: Sizes) -> Row:
    peak_gb(sizes)
    step, student = student_step(sizes)
    size, precision = size_of(student, encoder_config(sizes)), "bf16_mixed" if sizes.dtype == torch.bfloat16 else "fp32"
    settings = TrainSettings(global_batch=sizes.student_batch, micro_batch=sizes.student_batch, precision=precision)  # type: ignore[arg-type]
    longest = 8 + 60 + 3
    return step_row("student", step, Training(settings, size.parameters, longest, 0), size, sizes.student_batch, sizes)


def train_teacher(kind: str, shared: bool, sizes: Sizes) -> Row:
    """Measure a step of `kind` on answers that share the beginning of their prompts, or on each by itself."""
    peak_gb(sizes)
    make, each = STEPS[kind]
    model, batch = make_teacher(sizes), teacher_batch(sizes, each, shared)
    rows, length = batch["input_ids"].shape
    settings = TrainSettings(
        global_batch=rows, micro_batch=rows, gradient_checkpointing=True,
        precision="bf16" if sizes.dtype == torch.bfloat16 else "fp32",
    )  # fmt: skip
    learnt = each * sizes.answer * (sizes.sequences / rows)
    size = size_of(model, model.config)
    planned = Training(settings, size.parameters, length, round(learnt))
    step = make(model, batch, sizes.sequences)
    name = f"{kind}_{'shared' if shared else 'separate'}"
    return step_row(name, step, planned, size, sizes.sequences * each, sizes)


def measure(sizes: Sizes) -> list[Row]:
    """Return all rows with the same columns; where one has no value, it is empty."""
    rows = [*score(sizes), train_student(sizes)]
    rows += [train_teacher(kind, shared, sizes) for kind in STEPS for shared in (True, False)]
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def figures(rows: Sequence[Row]) -> Iterator[Figure]:
    """Yield the scorer's speed, what sharing prompts and graphs bring, and memory against the plan."""
    by_arm = {row["arm"]: row for row in rows}  # of the scorers, the most pairs
    best = "graphs" if "graphs" in by_arm else "served"
    most, peer = by_arm[best], by_arm.get("sentence_transformers")
    yield Figure("scorer_pairs_per_s", most["pairs_per_s"], f"{most['pairs']} pairs a call, {best}")
    yield Figure("scorer_share_of_matrix_rate", most["share_of_matrix_rate"], "of one large product's operations")
    one = {row["arm"]: row["p50_ms"] for row in rows if row["pairs"] == 1}
    yield Figure("scorer_p50_ms_one_pair", one[best], "ms")
    if peer:
        yield Figure("scorer_over_sentence_transformers", most["pairs_per_s"] / peer["pairs_per_s"], "times as fast")
    yield Figure("student_step_pairs_per_s", by_arm["student"]["pairs_per_s"], "pairs trained on per second")
    for kind in STEPS:
        shared, separate = (by_arm[f"{kind}_{name}"] for name in ("shared", "separate"))
        yield Figure(f"{kind}_shared_over_separate", separate["p50_ms"] / shared["p50_ms"], "times as fast")
        yield Figure(f"{kind}_loss_difference", abs(shared["loss"] - separate["loss"]), "of the first step's loss")
    for row in rows:
        if row["peak_gb"] and row["planned_gb"] and row is by_arm[row["arm"]]:
            yield Figure(f"{row['arm']}_memory_over_plan", row["peak_gb"] / row["planned_gb"], "of what the plan says")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny models on the CPU even where there is a GPU")
    given = parser.parse_args()
    card = torch.cuda.is_available() and not given.small
    rows = measure(CARD if card else SMALL)
    if card:
        write_results("gpu_check", list(figures(rows)), rows)
    else:
        show_results("gpu_check, tiny models on a CPU: these figures mean nothing", list(figures(rows)))


if __name__ == "__main__":
    main()
