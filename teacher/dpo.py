"""Stage 6: direct preference optimisation (DPO) on the preferences of stage 5."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import read_table
from cluster.training.arrow_rows import write_rows
from cluster.training.driver import Row, run_training
from teacher.config import DpoSettings, DpoStage
from teacher.model import load_tokenizer
from teacher.preferences.reference_logprobs import SIDES, collate_preferences, preference_kernel
from teacher.sft import AnswerTask


def run(config: DpoStage, folder: StageFolder) -> None:
    """Train the SFT teacher on the preferences and write `6-dpo/model`."""
    preferences = read_table(folder.input("5-preferences") / "preferences.parquet")
    start = folder.input("3-sft") / "model"
    folder.path.mkdir(parents=True, exist_ok=True)
    if not len(preferences):
        shutil.copytree(start, folder.path / "model", copy_function=link_or_copy, dirs_exist_ok=True)
        (folder.path / "history.jsonl").write_text("", encoding="utf-8")
        folder.finish({"train": 0, "dev": 0}, {"skipped": "no preferences: this is the SFT model"})
        return
    train = preferences.filter(pc.equal(preferences["split"], "train"))
    dev = preferences.filter(pc.equal(preferences["split"], "dev"))
    if not len(train):
        raise UserError("dpo: all preferences are of held-out pairs. Add 'train' to samples.splits.")
    write_rows(folder.path / "train.arrow", train)
    watched = evenly_spaced(dev, config.dpo.dev_rows)
    write_rows(folder.path / "dev.arrow", watched)
    settings = config.dpo
    kernel = preference_kernel(
        preferences, load_tokenizer(str(start)), settings, settings.train.workers.gpus_per_worker > 0
    )
    task = DpoTask(
        settings.train, config.seed, str(folder.path.resolve()), str(start.resolve()), settings.tuning,
        settings.max_tokens, settings, attention=kernel,
    )  # fmt: skip
    result = run_training(task, folder.path, "dpo")
    # The figures before training are left out: every margin is then 0 but for rounding, so accuracy means nothing.
    figures = {f"dev_{name}_after": result.kept.get(name) for name in ("loss", "margin", "accuracy")}
    folder.finish({"train": len(train), "dev": len(watched)}, figures | result.steps())


def link_or_copy(source: str, target: str) -> None:
    """Give the file a second name, which takes no space, or copy it where the file system has no such names."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def evenly_spaced(table: pa.Table, most: int) -> pa.Table:
    """Return at most `most` rows, at even distances in the table."""
    count = min(len(table), most)
    return table.take(pa.array([place * len(table) // count for place in range(count)], pa.int64()))


@dataclass
class DpoTask(AnswerTask):
    """The preference loss. Its units are preferences; the chosen answers are numbered first, then the rejected ones."""

    dpo: DpoSettings

    def length(self, row: Row) -> int:
        return max(len(row[f"{side}_prompt"]) + len(row[side]) for side in SIDES)

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        import torch

        batch = collate_preferences(self.tokenizer(), rows, self.max_tokens, self.dpo.share_prompts)
        reference = [row[f"{side}_reference_logprob"] for side in SIDES for row in rows]
        return batch | {"reference": torch.tensor(reference, dtype=torch.float32), "units": len(rows)}

    def loss(self, model: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, float]]:
        loss, margin, _ = self._losses(model, batch)
        right = float((margin > 0).sum())
        return loss.sum(), {"margin": float(margin.detach().sum()), "accuracy": right}

    def predict(self, model: Any, batch: dict[str, Any]) -> list[Row]:
        losses = [values.tolist() for values in self._losses(model, batch)]
        return [{"loss": loss, "margin": margin, "nll": nll} for loss, margin, nll in zip(*losses, strict=True)]

    def summarise(self, records: list[Row]) -> dict[str, float]:
        loss, margin, nll = (fmean(record[name] for record in records) for name in ("loss", "margin", "nll"))
        accuracy = fmean(record["margin"] > 0 for record in records)
        return {"loss": loss, "margin": margin, "accuracy": accuracy, "chosen_nll_per_token": nll}

    def _losses(self, model: Any, batch: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Return by preference the whole loss, the margin, and the chosen answer's mean negative log-probability."""
        from teacher.losses import preference_loss, sequence_logprobs

        sums, counts = sequence_logprobs(model, batch)
        reference, half = batch["reference"], batch["units"]
        nll = -(sums / counts)[:half]
        if self.dpo.length_normalised:
            sums, reference = sums / counts, reference / counts
        loss, margin = preference_loss(
            sums[:half], sums[half:], reference[:half], reference[half:],
            self.dpo.beta, self.dpo.loss, self.dpo.label_smoothing,
        )  # fmt: skip
        return loss + self.dpo.sft_weight * nll, margin, nll
