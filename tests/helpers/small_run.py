"""A whole run small enough for tests: the catalogue, a scripted engine, a tiny teacher and a tiny student."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.tiny_bert import tiny_bert
from tests.helpers.tiny_llama import tiny_llama

CONFIG = """
name = "small"
seed = 7
cluster = {{ num_cpus = 2, object_store_mb = 100 }}
source = {{ kind = "catalogue", pairs = 60, products_per_query = 3, seed_rationale_share = 0.5 }}
split = {{ train = 0.6, dev = 0.2, test = 0.2, unlabelled = 0.1 }}
teacher = {{ model = "{models}/tiny-llama" }}

[engine]
kind = "scripted"
accuracy = 0.7
failure_share = 0.05
replicas = {{ pairs_per_task = 4, flush_rows = 4 }}

[rationales]
guide = "short"
description_chars = 0

[judge]
guide = "short"
description_chars = 0

[sft]
tuning = {{ kind = "lora", rank = 4, alpha = 8 }}
held_out_share = 0.2
missing_labels = "warn"

[sft.train]
epochs = 2
learning_rate = 5e-3
global_batch = 6
micro_batch = 6
precision = "fp32"
checkpoint_every_steps = 2

[samples]
samples = 2
guide = "short"
description_chars = 0

[preferences]
per_pair = 2

[dpo]
tuning = {{ kind = "lora", rank = 4, alpha = 8 }}

[dpo.train]
epochs = 1
learning_rate = 1e-3
global_batch = 16
micro_batch = 16
precision = "fp32"
checkpoint_every_steps = 2

[targets]
encoder = "{models}/tiny-bert"
max_tokens = 48

[student]
model = "{models}/tiny-bert"
extractor = {{ kind = "mlp", hidden = 8 }}
max_tokens = 48

[student.train]
epochs = 2
learning_rate = 1e-3
global_batch = 8
micro_batch = 8
precision = "fp32"
checkpoint_every_steps = 2

[report]
samples = 2
bootstrap_resamples = 50
latency_singles = 4
latency_batches = 1
"""


def small_models(folder: Path) -> Path:
    """Write the two tiny models into `folder`."""
    tiny_llama(folder / "tiny-llama")
    tiny_bert(folder / "tiny-bert")
    return folder


def small_config(path: Path, models: Path) -> Path:
    """Write the run's config, naming the models in `models`."""
    path.write_text(CONFIG.format(models=models), encoding="utf-8")
    return path
