"""Stage 5: preference pairs, with the reference log-probabilities as columns.

The reference model is the SFT teacher. Computing its log-probabilities once, by a Ray Data job, means
that DPO never holds two models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.base.devices import use_gpus
from cluster.base.errors import UserError
from cluster.base.processor import resolve_precision
from cluster.base.progress import progress
from cluster.base.ray_session import stream_parquet
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import read_table, wide, write_table
from mpcot.asking.prompts import answer, messages, render
from mpcot.perspectives.perspective import load_perspectives
from mpcot.records import NOT_GOLD, PREFERENCE
from mpcot.schemes.scheme import load_scheme
from teacher.answer_tokens import encode, pad, share
from teacher.config import PreferenceStage
from teacher.model import load_tokenizer
from teacher.preferences.conflicts import Candidate, Preference, conflicts, gold_probability

SIDES = ("chosen", "rejected")
ANSWER_COLUMNS = ["pair_id", "perspective", "sample", "rationale", "verdict", "logprobs"]


def run(config: PreferenceStage, folder: StageFolder) -> None:
    """Write `5-preferences/preferences.parquet`."""
    pairs = {p["pair_id"]: p for p in read_table(folder.input("1-pairs") / "pairs.parquet").to_pylist()}
    gold = {k: p["label"] for k, p in pairs.items()}
    samples = list(_candidates(folder.input("4-samples"), ("kept", "filtered"), gold, config))
    found = conflicts(samples, _fallback(config, folder, gold), gold, config.preferences, config.seed)
    if not found and config.preferences.when_empty == "stop":
        right = sum(gold[c.pair_id] == c.verdict for c in samples)
        raise UserError(
            f"preferences: no conflict samples: {right} of {len(samples)} answers are right and none of them shares "
            "a pair with a wrong one. Raise samples.samples or samples.temperature, or go on without DPO by "
            'preferences.when_empty = "skip".'
        )
    model = str((folder.input("3-sft") / "model").resolve())
    table = preference_table(found, pairs, config, model)
    if len(table):
        table = with_reference(table, model, config, folder.path)
    write_table(folder.path / "preferences.parquet", table)
    crossed = sum(p.chosen.perspective != p.rejected.perspective for p in found)
    splits = {s: sum(pairs[p.chosen.pair_id]["split"] == s for p in found) for s in ("train", "dev")}
    counts = {"preferences": len(table), "pairs_in_conflict": len({p.chosen.pair_id for p in found}), **splits}
    folder.finish(counts, {"cross_perspective": crossed, **_spread(found, gold)})


def _spread(found: list[Preference], gold: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Count the preferences by gold label and by the perspective of each side."""
    return {
        "labels": dict(Counter(gold[p.chosen.pair_id] for p in found)),
        "chosen_perspectives": dict(Counter(p.chosen.perspective for p in found)),
        "rejected_perspectives": dict(Counter(p.rejected.perspective for p in found)),
    }


def _candidates(
    stage: Path, files: tuple[str, ...], gold: dict[str, Any], config: PreferenceStage
) -> Iterator[Candidate]:
    scheme = load_scheme(config.labels.scheme)
    for name in files:
        for row in read_table(stage / f"{name}.parquet", [*ANSWER_COLUMNS, "reason", "hinted"]).to_pylist():
            label = gold[row["pair_id"]]
            logprobs, reason, hinted = row.pop("logprobs"), row.pop("reason"), row.pop("hinted")
            # A wrong answer to a prompt that says what is right tells nothing of the prompt without it; nor does
            # the probability of a label that was given away.
            if label is None or reason not in (None, NOT_GOLD) or (hinted and reason is not None):
                continue
            row["gold_probability"] = None if hinted else gold_probability(logprobs, label, scheme)
            yield Candidate(**row)


def _fallback(config: PreferenceStage, folder: StageFolder, gold: dict[str, Any]) -> Iterator[Candidate]:
    if "rationales" in config.preferences.fallback:
        yield from _candidates(folder.input("2-rationales"), ("kept",), gold, config)
    if "seeds" in config.preferences.fallback:
        yield from _seeds(folder.input("1-pairs"), config.perspectives.names)


def _seeds(pairs: Path, perspectives: Sequence[str]) -> Iterator[Candidate]:
    for row in read_table(pairs / "seeds.parquet").to_pylist():
        row.pop("origin")
        if row["perspective"] not in perspectives:  # nor does SFT learn from it: there is no question to put to it
            continue
        yield Candidate(**row, sample=-1, gold_probability=None)


def preference_table(found: list[Preference], pairs: dict[str, Any], config: PreferenceStage, model: str) -> pa.Table:
    """Return the preferences as text, without reference log-probabilities yet."""
    perspectives = {p.name: p for p in load_perspectives(config.perspectives)}
    scheme, tokenizer, form = load_scheme(config.labels.scheme), load_tokenizer(model), config.samples

    def prompt(candidate: Candidate) -> str:
        pair, perspective = pairs[candidate.pair_id], perspectives[candidate.perspective]
        return render(tokenizer, messages(pair, perspective, scheme, form.few_shot, form.description_chars))

    rows = []
    for p in found:
        row = {"preference_id": p.id, "pair_id": p.chosen.pair_id, "split": pairs[p.chosen.pair_id]["split"]}
        for side, candidate in zip(SIDES, (p.chosen, p.rejected), strict=True):
            row[f"{side}_perspective"] = candidate.perspective
            row[f"{side}_prompt"] = prompt(candidate)
            row[side] = answer(candidate.rationale, candidate.verdict)
        rows.append(row)
    return pa.Table.from_pylist(rows, PREFERENCE)


def with_reference(table: pa.Table, model: str, config: PreferenceStage, folder: Path) -> pa.Table:
    """Fill the two reference columns by a Ray Data job over the preferences, lengths put together.

    Raises:
        UserError: a preference came back without its log-probabilities.
    """
    import ray.data

    scratch = folder / "unscored.parquet"
    lengths = [len(a) + len(b) for a, b in zip(table["chosen"].to_pylist(), table["rejected"].to_pylist(), strict=True)]
    order = sorted(range(len(table)), key=lengths.__getitem__)
    write_table(scratch, wide(table).take(order))
    settings = config.preferences
    resources = {"num_cpus": settings.workers.cpus_per_worker}
    if settings.workers.gpus_per_worker:
        resources["num_gpus"] = settings.workers.gpus_per_worker
    scored: dict[str, tuple[float, float]] = {}
    with progress("reference log-probabilities", unit="preference", total=len(table)) as bar:
        dataset = stream_parquet(scratch).map_batches(
            ReferenceScorer,
            fn_constructor_args=(
                model,
                config.dpo.max_tokens,
                config.dpo.share_prompts,
                config.dpo.train.precision,
                settings.workers.cpus_per_worker,
                settings.workers.gpus_per_worker,
            ),
            batch_size=settings.batch_size,
            compute=ray.data.ActorPoolStrategy(size=settings.workers.count),
            **resources,
        )
        for row in dataset.iter_rows():
            scored[row["preference_id"]] = (row["chosen_logprob"], row["rejected_logprob"])
            bar.update(len(scored))
    scratch.unlink()
    return fill_reference(table, scored)


def fill_reference(table: pa.Table, scored: dict[str, tuple[float, float]]) -> pa.Table:
    """Put the scored log-probabilities into their columns, by preference id."""
    ids = table["preference_id"].to_pylist()
    lost = [i for i in ids if i not in scored]
    if lost:
        raise UserError(
            f"preferences: {len(lost)} rows have no reference log-probabilities, first {lost[0]}. Run again."
        )
    for place, name in enumerate(("chosen_reference_logprob", "rejected_reference_logprob")):
        column = pa.array([scored[i][place] for i in ids], pa.float32())
        table = table.set_column(table.schema.get_field_index(name), PREFERENCE.field(name), column)
    return table


class ReferenceScorer:
    """Ray Data actor: sums of the answers' log-probabilities under the frozen reference."""

    def __init__(
        self, model: str, max_tokens: int, share_prompts: bool, precision: str, threads: int, gpus: float = 0
    ) -> None:
        use_gpus(gpus)
        import torch
        from transformers import AutoModelForCausalLM

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cpu":
            torch.set_num_threads(threads)
        self.precision = resolve_precision(precision, self.device == "cuda")
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, trust_remote_code=False)
        self.model = loaded.to(self.device).eval()
        self.tokenizer = load_tokenizer(model)
        self.max_tokens, self.share_prompts = max_tokens, share_prompts

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch

        from teacher.losses import sequence_logprobs

        names = [name for name in batch if name.endswith("_prompt") or name in SIDES]
        rows = [dict(zip(names, values, strict=True)) for values in zip(*(batch[n] for n in names), strict=True)]
        padded = collate_preferences(self.tokenizer, rows, self.max_tokens, self.share_prompts)
        mixed = torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16_mixed")
        with torch.inference_mode(), mixed:
            sums, _ = sequence_logprobs(self.model, {k: v.to(self.device) for k, v in padded.items()})
        scores = sums.cpu().numpy().reshape(len(SIDES), len(rows))
        found = {f"{side}_logprob": scores[place] for place, side in enumerate(SIDES)}
        return {"preference_id": batch["preference_id"], **found}


def collate_preferences(tokenizer: Any, rows: list[dict[str, Any]], max_tokens: int, share_prompts: bool) -> Any:
    """Return a batch of both answers of each row; answer i is row i's chosen one, answer len(rows) + i its rejected."""
    examples = [encode(tokenizer, row[f"{side}_prompt"], row[side], max_tokens) for side in SIDES for row in rows]
    count = len(rows)
    groups = [(i, count + i) for i in range(count)] if share_prompts else [(i,) for i in range(len(examples))]
    sequences = [share([examples[number] for number in group], group) for group in groups]
    return pad(sequences, tokenizer.pad_token_id)


def read_preferences(folder: Path) -> pa.Table:
    """Return the preferences of a finished stage 5."""
    return pq.read_table(folder / "preferences.parquet")
