"""What `resilience.py` runs in processes of their own: a generation and a training that are killed meanwhile.

Scripted engines take as long to start and to answer as a model of 8B weights on a GPU: weights from a local disk in
20 s, and 512 tokens at 60 a second in 8 s. The training is that of a tiny Llama by two workers.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from scale_arms import pair

from cluster.base.ray_session import ray_session
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import write_table
from cluster.config import ClusterSettings, TrainSettings, Workers
from cluster.training.arrow_rows import write_rows
from cluster.training.driver import run_training
from mpcot.asking import merge_parts
from mpcot.config import (
    PerspectiveSettings,
    RationaleSettings,
    RationaleStage,
    Replicas,
    ScriptedEngine,
    TeacherSettings,
    VllmEngine,
)
from mpcot.rationales import run_rationales
from mpcot.records import PAIR
from mpcot.sources.config import LabelSettings
from teacher.config import Full
from teacher.examples import EXAMPLE
from teacher.model import load_tokenizer
from teacher.sft import SftTask, to_sequences

MODEL = Path(__file__).parents[1] / "models" / "smollm2-135m-instruct"
STAGE, NOTES = "2-rationales", "notes"
SEED = 3
ENGINES, START_S, ANSWER_S = 4, 20.0, 8.0  # four engines of two GPUs, as on one node
STEPS, ROWS, MAX_TOKENS = 2000, 800, 128
SENTENCE = "the shopper wants a drill and this case only holds one so it is not what they asked for"


def scripted(notes: Path) -> ScriptedEngine:
    """Engines that note the key of each request."""
    replicas = Replicas(min=ENGINES, max=ENGINES, pairs_per_task=8)
    return ScriptedEngine(start_s=START_S, delay_s=ANSWER_S, log=str(notes), replicas=replicas)


def real() -> VllmEngine:
    """One vLLM on all cores, whose processes may be killed as often as they are."""
    replicas = Replicas(cpus=ENGINES, pairs_per_task=8, flush_rows=16, restarts=1000)
    return VllmEngine(max_model_len=512, max_num_seqs=48, enforce_eager=True, replicas=replicas)


def generate(run_dir: Path, pairs: int, model: str | None) -> None:
    """Ask for the rationales of so many pairs, as stage 2 does."""
    write_table(run_dir / "1-pairs" / "pairs.parquet", pa.Table.from_pylist([pair(n) for n in range(pairs)], PAIR))
    asked = {"guide": "short", "description_chars": 0, "max_tokens": 48, "max_chars": 120, "retries": 0}
    config = RationaleStage(
        seed=SEED,
        labels=LabelSettings(),
        perspectives=PerspectiveSettings(),
        teacher=TeacherSettings(model=model or "scripted/none"),
        engine=real() if model else scripted(run_dir / NOTES),
        rationales=RationaleSettings.model_validate(asked | {"max_failed_share": 1}),
    )
    merge_parts.MANY = 1_000_000  # when each part was written is read afterwards, so they stay apart
    with ray_session(ClusterSettings(num_cpus=ENGINES, object_store_mb=128)):
        run_rationales(config, StageFolder(run_dir, STAGE, {}, {"1-pairs": "made"}))


@dataclass
class Noted(SftTask):
    """Notes the time of each forward pass of the first worker."""

    def loss(self, model: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, float]]:
        if os.environ["RANK"] == "0":
            with (Path(self.folder) / NOTES).open("a", encoding="utf-8") as file:
                file.write(f"{time.time()}\n")
        return super().loss(model, batch)


def tiny_model(folder: Path) -> str:
    """Write a random Llama of two layers with the tokenizer of the demo's teacher."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(SEED)
    config = AutoConfig.from_pretrained(MODEL, **sizes, num_key_value_heads=2, head_dim=16, dtype="float32")
    LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer(str(MODEL)).save_pretrained(folder)
    return str(folder)


def example(number: int) -> dict[str, Any]:
    said = f"{' '.join(SENTENCE.split()[: 4 + number % 12])}.\nVerdict: {'ESCI'[number % 4]}"
    row = dict.fromkeys(EXAMPLE.names, "x") | {"pair_id": f"p{number}", "query_id": f"q{number}", "weight": 1.0}
    return row | {"prompt": f"Query: drill {number}\n", "answer": said}


def train(run_dir: Path) -> None:
    """Train the tiny Llama as stage 3 does."""
    sequences = to_sequences(pa.Table.from_pylist([example(n) for n in range(ROWS)], EXAMPLE), 1)
    write_rows(run_dir / "train.arrow", sequences)
    write_rows(run_dir / "dev.arrow", sequences.slice(0, 0))
    settings = TrainSettings(
        steps=STEPS,
        learning_rate=1e-3,
        global_batch=16,
        micro_batch=8,
        precision="fp32",
        zero_stage=2,
        checkpoint_every_steps=20,
        workers=Workers(count=2, max_failures=1000),
    )
    task = Noted(settings, SEED, str(run_dir), tiny_model(run_dir / "tiny"), Full(), MAX_TOKENS, 1.0)
    with ray_session(ClusterSettings(num_cpus=2, object_store_mb=128)):
        run_training(task, run_dir / "out", "sft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--pairs", type=int, help="pairs of a generation; without, a training is run")
    parser.add_argument("--model")
    given = parser.parse_args()
    if given.pairs:
        generate(given.run_dir, given.pairs, given.model)
    else:
        train(given.run_dir)


if __name__ == "__main__":
    main()
