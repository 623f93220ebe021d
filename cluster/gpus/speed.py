"""How long a GPU takes, by arithmetic on plain numbers: a roofline (Williams et al. 2009) over its data sheet.

Operations per token are those of Kaplan et al. 2020 (arXiv 2001.08361), section 2.1: 2 per parameter forward,
4 backward; attention over a short context is left out. Which share of the data sheet is reached is an assumption.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.gpus.memory import Gpu, kv_bytes_per_token
from cluster.models.size import ModelSize

COMPUTE_SHARE = 0.4
BANDWIDTH_SHARE = 0.6
FORWARD = 2


def formulas(gpu: Gpu) -> tuple[str, ...]:
    """Return the formulas as text, with the shares that count for this GPU."""
    share = f"{gpu.generation_share:g}"
    return (
        f"prompt: s per token = 2 x parameters / (GPUs x TFLOP/s x {share})",
        "answer: s per token = max((weights + sequences x context x KV per token) / (GPUs x bandwidth x "
        f"{BANDWIDTH_SHARE:g}), sequences x 2 x parameters / (GPUs x TFLOP/s x {share})) / sequences",
        f"training: tokens/s = GPUs x TFLOP/s x {COMPUTE_SHARE:g} / (parameters x (2 forward + 4 backward, 2 of them "
        "for frozen weights, + 2 for recomputation))",
    )


@dataclass(frozen=True)
class Generation:
    """The work of one replica, which has `sequences` at a time, each a prompt and an answer of so many tokens."""

    tensor_parallel: int
    sequences: int
    prompt_tokens: int
    answer_tokens: int
    width: int = 2


def compute_rate(gpu: Gpu, count: int = 1) -> float:
    """Return the operations per second that `count` GPUs are assumed to reach in a training or forward passes."""
    return count * gpu.bf16_tflops * 1e12 * COMPUTE_SHARE


def _multiplying_seconds(model: ModelSize, gpu: Gpu, work: Generation, tokens: float) -> float:
    """Return how long the products for so many tokens take in a generation."""
    reached = work.tensor_parallel * gpu.bf16_tflops * 1e12 * gpu.generation_share
    return tokens * FORWARD * model.multiplied / reached


def step_seconds(model: ModelSize, gpu: Gpu, work: Generation) -> float:
    """Return how long a decoding step takes, in which every sequence gets a token; memory or arithmetic bounds it."""
    context = work.prompt_tokens + work.answer_tokens / 2
    read = model.multiplied * work.width + work.sequences * context * kv_bytes_per_token(model, work.width)
    by_memory = read / (work.tensor_parallel * gpu.bandwidth_gb_s * 1e9 * BANDWIDTH_SHARE)
    return max(by_memory, _multiplying_seconds(model, gpu, work, work.sequences))


def answers_per_second(model: ModelSize, gpu: Gpu, work: Generation) -> float:
    """Return one replica's answers per second, as if no prefix of a prompt were cached."""
    prefill = _multiplying_seconds(model, gpu, work, work.prompt_tokens)
    decode = work.answer_tokens * step_seconds(model, gpu, work) / work.sequences
    return 1 / (prefill + decode)


def training_tokens_per_second(model: ModelSize, gpu: Gpu, workers: int, frozen: bool, recompute: bool) -> float:
    """Return the tokens per second of a training; frozen weights need no gradients of their own."""
    operations = FORWARD + (2 if frozen else 4) + (FORWARD if recompute else 0)
    return compute_rate(gpu, workers) / (operations * model.multiplied)


def forward_tokens_per_second(model: ModelSize, gpu: Gpu, workers: int) -> float:
    """Return the tokens per second of forward passes alone."""
    return compute_rate(gpu, workers) / (FORWARD * model.multiplied)
