"""Compares SFT and DPO with TRL's trainers by tokens per second and peak memory.

Every arm is a process of its own. All of them train the same model in full on the same answers in the same order and
batches, with the same optimiser, clipping, precision, threads and malloc settings, and their losses must agree.
Useful tokens are those of all prompts and answers without padding, as TRL counts them. Both sides have the same number
of them, so that a shared prompt shows as a gain. Reference log-probabilities are part of DPO's time on all sides;
loading, imports and tokenising in advance are not.
"""

from __future__ import annotations

import os
import tempfile
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from results import Figure, in_own_process, write_results
from training_arms import ARMS, MODEL, WARM_UP_STEPS, Row, batches, dpo_rows, dpo_task, sft_rows, sft_task, tokens

from cluster.base.ray_session import LOCAL_ENVIRONMENT
from teacher.answer_tokens import IGNORED, PADDING
from teacher.dpo import DpoTask
from teacher.preferences.reference_logprobs import SIDES
from teacher.sft import SftTask

MIB = 2**20
# Relative differences. In bf16, sums of other shapes are rounded in another way, and DPO's loss is made of differences
# of sums over answers. In fp32 both sides agree to 1e-5, which tests show.
SAME_LOSS = {"sft": 0.03, "dpo": 0.05}


def run_arm(arm: str) -> Row:
    """Run an arm in a process of its own, with the environment of our training workers."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | LOCAL_ENVIRONMENT | {"HF_DATASETS_CACHE": folder, "TOKENIZERS_PARALLELISM": "false"}
        return in_own_process(Path(__file__).with_name("training_arms.py"), "--arm", arm, environment=environment)


def training_flops(task: SftTask | DpoTask, rows: Sequence[Row], shared: bool) -> float:
    """Return the operations of the matrix products in the timed steps, without padding and attention.

    There are six per weight and token, forward and backward; the vocabulary's weights count for answer tokens only.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(MODEL)
    heads = config.num_attention_heads * config.head_dim + 2 * config.num_key_value_heads * config.head_dim
    layer = config.hidden_size * (heads + config.num_attention_heads * config.head_dim + 3 * config.intermediate_size)
    reference = {f"{side}_reference_logprob": 0.0 for side in SIDES}
    seen = task.collate([row | reference for row in rows])
    answers = int((seen["labels"] != IGNORED).sum())
    computed = int((seen["branches"] != PADDING).sum()) if shared else tokens(rows)
    return 6.0 * (config.num_hidden_layers * layer * computed + config.vocab_size * config.hidden_size * answers)


def summarise(found: dict[str, Row]) -> list[Row]:
    """Return one row per arm: tokens, seconds, speed, share of the machine's limit, and memory."""
    limit = median(found[name]["flops_per_s"] for name in found if name.startswith("matrix_limit"))
    rows = []
    for kind, task, data in (("sft", sft_task("."), sft_rows()), ("dpo", dpo_task("."), dpo_rows())):
        steps = batches(task, data)
        timed_rows = [row for step in steps[WARM_UP_STEPS:] for row in step]
        useful = tokens(timed_rows)
        for arm in (name for name in found if f"_{kind}" in name):
            ends, prepared = found[arm]["ends"], found[arm]["prepared"] * (1 - WARM_UP_STEPS / len(steps))
            trained = ends[-1] - ends[WARM_UP_STEPS - 1]
            flops = training_flops(task, timed_rows, arm.startswith("our"))
            rows.append(
                {
                    "arm": arm, "useful_tokens": useful, "training_seconds": trained, "reference_seconds": prepared,
                    "useful_tokens_per_s": useful / (trained + prepared), "peak_mib": found[arm]["peak_bytes"] / MIB,
                    "share_of_matrix_limit": flops / trained / limit, "matrix_limit_gflops": limit / 1e9,
                    "losses": " ".join(f"{loss:.4f}" for loss in found[arm]["losses"]),
                }
            )  # fmt: skip
    return rows


def check_same_work(found: dict[str, Row]) -> None:
    """Stop unless both sides counted the same tokens and their losses agree at every step."""
    peers = (("sft", "trl_sft"), ("dpo", "trl_dpo"), ("dpo", "trl_dpo_precomputed"))
    for kind, theirs_ in peers:
        ours_ = f"our_{kind}"
        for what, relative in (("tokens", 0), ("losses", SAME_LOSS[kind])):
            pair = found[ours_][what], found[theirs_][what]
            if not np.allclose(*pair, rtol=relative):
                raise SystemExit(f"{ours_} and {theirs_} did not learn the same: {what} {pair[0]} and {pair[1]}")


def figures(rows: Sequence[Row]) -> list[Figure]:
    rate = {row["arm"]: row["useful_tokens_per_s"] for row in rows}
    peak = {row["arm"]: row["peak_mib"] for row in rows}
    share = {row["arm"]: row["share_of_matrix_limit"] for row in rows}
    sft, dpo = rate["our_sft"] / rate["trl_sft"], rate["our_dpo"] / rate["trl_dpo"]
    precomputed, memory = rate["our_dpo"] / rate["trl_dpo_precomputed"], peak["our_dpo"] / peak["trl_dpo"]
    unit = "ratio of useful tokens per second"
    return [
        Figure("sft_over_trl", sft, unit, at_least=1.3),
        Figure("dpo_over_trl", dpo, f"{unit}, live reference", at_least=1.8),
        Figure("dpo_memory_over_trl", memory, "ratio of peak memory, live reference", at_most=0.7),
        Figure("dpo_over_trl_precomputed", precomputed, unit),
        Figure("sft_memory_over_trl", peak["our_sft"] / peak["trl_sft"], "ratio of peak memory"),
        Figure("sft_share_of_matrix_limit", share["our_sft"], "of the products that are needed"),
        Figure("dpo_share_of_matrix_limit", share["our_dpo"], "likewise, training alone"),
        Figure("trl_sft_share_of_matrix_limit", share["trl_sft"], "likewise"),
    ]


def main() -> None:
    ArgumentParser(description=__doc__).parse_args()
    found = {arm: run_arm(arm) for arm in ARMS}
    found["matrix_limit_after"] = run_arm("matrix_limit")
    check_same_work(found)
    rows = summarise(found)
    write_results("training", figures(rows), rows)


if __name__ == "__main__":
    main()
