"""Stage 3: supervised fine-tuning on the kept rationales of all perspectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from cluster.base.errors import UserError
from cluster.base.progress import console
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import rows_in, table_of
from cluster.models.folders import model_to_load
from cluster.training.arrow_rows import ArrowRows, write_rows
from cluster.training.driver import Row, Rows, TrainTask, run_training
from mpcot.schemes.scheme import Scheme, load_scheme
from teacher.answer_tokens import IGNORED, Joined, encode, joined_length, pad, share, verdict_tokens
from teacher.config import SftStage, Tuning
from teacher.examples import VOTE, collect_examples
from teacher.fitting import Fitting
from teacher.model import attention_kernel, load_tokenizer, load_trainable, save_merged

TEXTS = pa.list_(pa.string())
SEQUENCE = pa.schema(
    [("pair_id", pa.string()), ("prompts", TEXTS), ("answers", TEXTS), ("weights", pa.list_(pa.float32()))]
)


def run(config: SftStage, folder: StageFolder) -> None:
    """Train the teacher on rationales and write `3-sft/model`."""
    model = model_to_load("teacher.model", config.teacher.model)
    fitting = Fitting(load_tokenizer(model), config.sft.max_tokens)
    examples = collect_examples(config, folder.input("1-pairs"), folder.input("2-rationales"), fitting)
    gold = examples.filter(pc.not_equal(examples["origin"], VOTE))
    missing = check_labels(gold, load_scheme(config.labels.scheme), config.sft.missing_labels)
    settings = config.sft
    found, dev = hold_out(examples, settings.held_out_share, config.seed, settings.dev_rows)
    train = cap_labels(found, settings.label_ratio, config.seed)
    sequences = [to_sequences(table, settings.answers_per_sequence) for table in (train, dev)]
    for name, table in zip(("train", "dev"), sequences, strict=True):
        write_rows(folder.path / f"{name}.arrow", table)
    lengths = sequence_lengths(fitting, chain.from_iterable(map(rows_in, sequences)))
    task = SftTask(
        settings.train, config.seed, str(folder.path.resolve()), model, settings.tuning, settings.max_tokens,
        settings.verdict_weight, attention=attention_kernel(lengths, settings.train.workers.gpus_per_worker > 0),
    )  # fmt: skip
    result = run_training(task, folder.path, "sft")
    origins = {str(v["values"]): v["counts"] for v in train["origin"].value_counts().to_pylist()}
    figures: dict[str, Any] = {
        "origins": origins,
        "labels_without_rationale": missing,
        "beyond_label_ratio": len(found) - len(train),
        "left_out": dict(fitting.left_out),
        "cut": dict(fitting.cut),
    }
    figures |= {"dev_loss_before": result.before.get("loss"), "dev_loss_after": result.kept.get("loss")}
    figures |= result.steps()
    folder.finish({"train": len(train), "dev": len(dev), "left_out": fitting.left_out.total()}, figures)


def to_sequences(examples: pa.Table, most: int) -> pa.Table:
    """Return one row per training sequence: up to `most` answers to one pair, whose prompts begin alike."""

    def rows() -> Iterator[Row]:
        row: Row | None = None
        for example in rows_in(examples.select(["pair_id", "prompt", "answer", "weight"])):
            if row is None or row["pair_id"] != example["pair_id"] or len(row["answers"]) == most:
                if row is not None:
                    yield row
                row = {"pair_id": example["pair_id"], "prompts": [], "answers": [], "weights": []}
            for name in ("prompt", "answer", "weight"):
                row[f"{name}s"].append(example[name])
        if row is not None:
            yield row

    return table_of(rows(), SEQUENCE)


def sequence_lengths(fitting: Fitting, sequences: Iterable[Row]) -> Iterator[int]:
    """Yield the number of tokens of each sequence: the common beginning once, and what is behind it of every answer."""
    for row in sequences:
        said = zip(row["prompts"], row["answers"], strict=True)
        yield joined_length([encode(fitting.tokenizer, *each, fitting.max_tokens) for each in said])


def check_labels(examples: pa.Table, scheme: Scheme, missing_labels: str) -> list[str]:
    """Return the labels without any example.

    Raises:
        UserError: there are such labels and `sft.missing_labels` is "stop", or there are no examples at all.
    """
    counts = {v["values"]: v["counts"] for v in examples["verdict"].value_counts().to_pylist()}
    missing = [code for code in scheme.codes if not counts.get(code)]
    if not missing:
        return []
    had = ", ".join(f"{code} {counts.get(code, 0)}" for code in scheme.codes)
    message = (
        f"sft: no rationale was kept for label {', '.join(missing)} (kept: {had}). Raise rationales.samples or "
        "rationales.few_shot, or add seed rationales to the source"
    )
    if missing_labels == "stop" or len(missing) == len(scheme.codes):
        raise UserError(f'{message}. To train without these labels, set sft.missing_labels = "warn".')
    console().print(f"  warning: {message}.", style="yellow")
    return missing


def hold_out(examples: pa.Table, share: float, seed: int, most: int) -> tuple[pa.Table, pa.Table]:
    """Split the examples by query into those for training and about `most` at most on which the loss is judged.

    Whole queries are held out, in an order that the seed draws, until `share` of the queries or `most` examples are:
    what is not judged is trained on. At least one query is held out, and at least one is trained on. The loss is
    judged on gold labels only; votes about a held-out query are left out altogether.
    """
    voted = pc.equal(examples["origin"], VOTE)

    def draw(query_id: str) -> float:
        return xxhash.xxh3_64_intdigest(f"{seed}/{query_id}".encode()) / 2**64

    gold = examples.filter(pc.invert(voted))
    sizes = Counter(gold["query_id"].to_pylist())
    queries = sorted(sizes, key=draw)
    room = sum(total <= most for total in accumulate(sizes[query] for query in queries))
    count = min(len(queries) - 1, max(1, min(room, sum(draw(query) < share for query in queries))))
    held = pa.array(queries[:count], pa.string())
    train = examples.filter(pc.invert(pc.is_in(examples["query_id"], held)))
    return train, gold.filter(pc.is_in(gold["query_id"], held))


def cap_labels(examples: pa.Table, ratio: float | None, seed: int) -> pa.Table:
    """Leave out pairs of frequent labels, drawn by a hash, until `ratio` holds; the order stays as it is.

    A label may have at most `ratio` times as many answers as the rarest label that occurs.
    """
    if ratio is None or not len(examples):
        return examples
    by_pair = Counter(zip(examples["pair_id"].to_pylist(), examples["verdict"].to_pylist(), strict=True))
    answers = Counter(examples["verdict"].to_pylist())
    room = dict.fromkeys(answers, ratio * min(answers.values()))
    kept = set()
    for pair_id, verdict in sorted(by_pair, key=lambda pair: xxhash.xxh3_64_intdigest(f"{seed}/{pair[0]}".encode())):
        if by_pair[pair_id, verdict] <= room[verdict]:
            room[verdict] -= by_pair[pair_id, verdict]
            kept.add(pair_id)
    return examples.filter(pc.is_in(examples["pair_id"], pa.array(sorted(kept), pa.string())))


@dataclass
class AnswerTask(TrainTask):
    """What SFT and DPO have in common: rows on disk, the model that they start from, and how it is saved."""

    folder: str
    model: str
    tuning: Tuning
    max_tokens: int
    attention: str | None = field(default=None, kw_only=True)  # a kernel's name; None lets transformers choose

    def train_rows(self) -> Rows:
        return ArrowRows(Path(self.folder) / "train.arrow")

    def dev_rows(self) -> Rows:
        return ArrowRows(Path(self.folder) / "dev.arrow")

    def build(self) -> Any:
        dtype = "bfloat16" if self.precision == "bf16" else "float32"
        return load_trainable(self.model, self.tuning, dtype, self.attention)

    def save(self, state: dict[str, Any], folder: Path) -> None:
        save_merged(self.model, self.tuning, state, folder)

    def tokenizer(self) -> Any:
        """Return the tokenizer, loaded once per process."""
        if not hasattr(self, "_tokenizer"):
            self._tokenizer = load_tokenizer(self.model)
        return self._tokenizer


@dataclass
class SftTask(AnswerTask):
    """Next-token loss on answers. Its units are answer tokens, by their own weight and that of their answer."""

    verdict_weight: float

    def length(self, row: Row) -> int:
        return len(row["prompts"][0]) + sum(map(len, row["answers"]))

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        import torch

        from teacher.losses import verdict_weights

        tokenizer = self.tokenizer()
        sequences: list[Joined] = []
        verdicts: list[int] = []
        for row in rows:
            said = zip(row["prompts"], row["answers"], strict=True)
            examples = [encode(tokenizer, prompt, answer, self.max_tokens) for prompt, answer in said]
            sequences.append(share(examples, range(len(verdicts), len(verdicts) + len(examples))))
            verdicts += [verdict_tokens(tokenizer, answer) for answer in row["answers"]]
        batch = pad(sequences, tokenizer.pad_token_id)
        # The first token of a sequence is never predicted.
        owners = batch["owners"][:, 1:][batch["labels"][:, 1:] != IGNORED]
        weights = verdict_weights(owners, torch.tensor(verdicts), self.verdict_weight)
        own = [weight for row in rows for weight in row.get("weights") or [1.0] * len(row["answers"])]
        weights = weights * torch.tensor(own)[owners]
        answers = [len(row["answers"]) for row in rows]
        return batch | {"weights": weights, "answers": answers, "units": float(weights.sum())}

    def loss(self, model: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, float]]:
        from teacher.losses import answer_logprobs

        logprobs, _ = answer_logprobs(model, batch)
        return -(logprobs * batch["weights"]).sum(), {}

    def predict(self, model: Any, batch: dict[str, Any]) -> list[Row]:
        """Return by row what the loss of its answers is made of: with the weights of the training, and without."""
        import torch

        from teacher.losses import answer_logprobs

        logprobs, owners = answer_logprobs(model, batch)
        weights, count = batch["weights"], len(batch["answers"])
        rows = torch.arange(count).repeat_interleave(torch.tensor(batch["answers"])).to(owners.device)[owners]
        columns = {"loss": -logprobs * weights, "weight": weights, "nll": -logprobs, "tokens": torch.ones_like(weights)}
        sums = [torch.zeros(count, device=v.device).index_add(0, rows, v).tolist() for v in columns.values()]
        return [dict(zip(columns, values, strict=True)) for values in zip(*sums, strict=True)]

    def summarise(self, records: list[Row]) -> dict[str, float]:
        """Return `loss`, a mean as the training's is, and `nll_per_token`, which no weight changes."""
        total = {name: sum(record[name] for record in records) for name in records[0]}
        return {"loss": total["loss"] / total["weight"], "nll_per_token": total["nll"] / total["tokens"]}
