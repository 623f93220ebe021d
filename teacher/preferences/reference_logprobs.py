"""The log-probabilities of both answers of every preference under the reference model, the SFT teacher.

They are computed once, by a Ray Data job, so that DPO never has to hold two models.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.base.devices import use_gpus
from cluster.base.errors import UserError
from cluster.base.processor import resolve_precision
from cluster.base.progress import progress
from cluster.base.ray_session import stream_parquet
from cluster.base.tables import wide, write_table
from mpcot.records import PREFERENCE
from teacher.answer_tokens import encode, joined_length, pad, share
from teacher.config import DpoSettings, PreferenceStage
from teacher.model import attention_kernel, load_tokenizer

SIDES = ("chosen", "rejected")
ROWS_AT_A_TIME = 256


def score_preferences(table: pa.Table, model: str, config: PreferenceStage, folder: Path) -> pa.Table:
    """Fill the two reference columns by a Ray Data job over the preferences, in which like lengths come together.

    Raises:
        UserError: a preference came back without its log-probabilities.
    """
    import ray.data

    scratch = folder / "unscored.parquet"
    kernel = preference_kernel(table, load_tokenizer(model), config.dpo, config.preferences.workers.gpus_per_worker > 0)
    lengths = [len(a) + len(b) for a, b in zip(table["chosen"].to_pylist(), table["rejected"].to_pylist(), strict=True)]
    order = sorted(range(len(table)), key=lengths.__getitem__)
    write_table(scratch, wide(table).take(order))
    settings, workers = config.preferences, config.preferences.workers
    scored: dict[str, tuple[float, float]] = {}
    with progress("reference log-probabilities", unit="preference", total=len(table)) as bar:
        dataset = stream_parquet(scratch).map_batches(
            ReferenceScorer,
            fn_constructor_args=(
                model,
                config.dpo.max_tokens,
                config.dpo.share_prompts,
                config.dpo.train.precision,
                workers.cpus_per_worker,
                workers.gpus_per_worker,
                kernel,
            ),
            batch_size=settings.batch_size,
            compute=ray.data.ActorPoolStrategy(size=workers.count),
            num_cpus=workers.cpus_per_worker,
            num_gpus=workers.gpus_per_worker,
        )
        for row in dataset.iter_rows():
            scored[row["preference_id"]] = (row["chosen_logprob"], row["rejected_logprob"])
            bar.update(len(scored))
    scratch.unlink()
    return fill_logprobs(table, scored)


def fill_logprobs(table: pa.Table, scored: dict[str, tuple[float, float]]) -> pa.Table:
    """Return the preferences with the reference columns filled from log-probabilities by preference id."""
    ids = table["preference_id"].to_pylist()
    lost = [i for i in ids if i not in scored]
    if lost:
        raise UserError(
            f"preferences: {len(lost)} rows have no reference log-probabilities; the first is {lost[0]}. Run again."
        )
    for place, side in enumerate(SIDES):
        field = PREFERENCE.field(f"{side}_reference_logprob")
        column = pa.array([scored[i][place] for i in ids], pa.float32())
        table = table.set_column(table.schema.get_field_index(field.name), field, column)
    return table


class ReferenceScorer:
    """Ray Data actor that sums the answers' log-probabilities under the frozen reference model."""

    def __init__(
        self,
        model: str,
        max_tokens: int,
        share_prompts: bool,
        precision: str,
        threads: int,
        gpus: float = 0,
        attention: str | None = None,
    ) -> None:
        use_gpus(gpus)
        import torch
        from transformers import AutoModelForCausalLM

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cpu":
            torch.set_num_threads(threads)
        self.precision = resolve_precision(precision, self.device == "cuda")
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
        self.model = loaded.to(self.device).eval()
        self.tokenizer = load_tokenizer(model)
        self.max_tokens, self.share_prompts = max_tokens, share_prompts

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch

        from teacher.losses import sequence_logprobs

        names = [name for side in SIDES for name in (f"{side}_prompt", side)]
        rows = [dict(zip(names, values, strict=True)) for values in zip(*(batch[n] for n in names), strict=True)]
        padded = collate_preferences(self.tokenizer, rows, self.max_tokens, self.share_prompts)
        mixed = torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16_mixed")
        with torch.inference_mode(), mixed:
            sums, _ = sequence_logprobs(self.model, {k: v.to(self.device) for k, v in padded.items()})
        scores = sums.cpu().numpy().reshape(len(SIDES), len(rows))
        found = {f"{side}_logprob": scores[place] for place, side in enumerate(SIDES)}
        return {"preference_id": batch["preference_id"], **found}


def preference_kernel(table: pa.Table, tokenizer: Any, dpo: DpoSettings, gpu: bool) -> str | None:
    """Return the attention kernel for these preferences, for the reference model and for the one that learns."""

    def lengths() -> Iterator[int]:
        for batch in table.to_batches(max_chunksize=ROWS_AT_A_TIME):
            for row in batch.to_pylist():
                sides = [encode(tokenizer, row[f"{side}_prompt"], row[side], dpo.max_tokens) for side in SIDES]
                yield joined_length(sides) if dpo.share_prompts else max(len(ids) for ids, _ in sides)

    return attention_kernel(lengths(), gpu)


def collate_preferences(tokenizer: Any, rows: list[dict[str, Any]], max_tokens: int, share_prompts: bool) -> Any:
    """Return a batch with both answers of each row.

    Answer number i is the chosen one of row i, and answer number len(rows) + i the rejected one.
    """
    examples = [encode(tokenizer, row[f"{side}_prompt"], row[side], max_tokens) for side in SIDES for row in rows]
    count = len(rows)
    groups = [(i, count + i) for i in range(count)] if share_prompts else [(i,) for i in range(len(examples))]
    return pad([share([examples[i] for i in group], group) for group in groups], tokenizer.pad_token_id)
