"""What is measured on dev: ratios of losses and gradients, the skill of the alignment, NDCG."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import read_table, write_table
from tests.helpers.lrkd_tasks import TRAIN, dev_figures, lrkd

Stage = Callable[..., StageFolder]


def test_dev_figures_hold_the_ratios(encoder: Path, stage: Stage) -> None:
    task = lrkd(encoder, stage("9-student"), alignment_weight=0.5)
    weak = lrkd(encoder, stage("9-student"), alignment_weight=0.05)
    figures = []
    for one in (task, weak):
        model = one.build().eval()
        with torch.no_grad():
            figures.append(one.summarise(one.predict(model, one.collate(list(one.dev_rows())))))
        assert all(p.grad is None for p in model.parameters())
    assert figures[0]["loss"] == pytest.approx(sum(figures[0][k] for k in ("ce", "alignment", "verdicts")))
    for name in ("alignment_over_ce_loss", "alignment_over_ce_gradient"):
        assert figures[0][name] == pytest.approx(10 * figures[1][name], rel=1e-4) and figures[0][name] > 0


def test_the_gradient_is_that_at_the_encoders_output(encoder: Path, stage: Stage) -> None:
    task = lrkd(encoder, stage("9-student"))
    model, batch = task.build().eval(), task.collate(list(task.dev_rows()[:1]))
    states: list[torch.Tensor] = []

    def keep(module: object, inputs: object, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        states.append(output.last_hidden_state)

    hook = model.encoder.register_forward_hook(keep)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    task.parts(model(**inputs), batch, 1.0)["ce"].sum().backward()
    hook.remove()
    with torch.no_grad():
        record = task.predict(model, batch)[0]
    assert states[0].grad is not None
    assert record["ce_gradient"] == pytest.approx(float(states[0].grad.norm()), rel=1e-4)


def test_the_skill_is_what_is_gained_over_the_best_constant_vectors(encoder: Path, stage: Stage) -> None:
    task = lrkd(encoder, stage("9-student"), alignment_weight=0.5)
    silent = [row["target_mask"].tolist() == [True, False] for row in task.dev_rows()]
    assert sum(silent) == 4
    figures = dev_figures(task)
    assert figures["alignment_skill"] == pytest.approx(1 - figures["alignment"] / 0.5 / task.constant)
    # A constant is right about rules, which says the same wherever it says anything. A pair whose rules are silent
    # counts intent in full, the others by half.
    intent = [row["targets"][0] for row in task.dev_rows()]
    share = [1.0 if alone else 0.5 for alone in silent]
    mean = sum(w * t for w, t in zip(share, intent, strict=True))
    best = mean / (mean @ mean) ** 0.5
    expected = sum(w * (2 - 2 * float(best @ t)) for w, t in zip(share, intent, strict=True)) / 16
    assert task.constant == pytest.approx(expected, rel=1e-5)
    assert "alignment_skill" not in dev_figures(lrkd(encoder, stage("9-student"), alignment_weight=0))


def test_the_skill_of_infonce_is_over_the_log_of_the_candidates(encoder: Path, stage: Stage) -> None:
    task = lrkd(
        encoder, stage("9-student"), alignment="infonce", alignment_weight=2.0, per_perspective=False, target="intent"
    )
    rows = task.collate(list(task.dev_rows()))
    model = task.build().eval()
    records = task.predict(model, rows)
    # Four pairs have the vector of yes and twelve that of no: an own one and those of the other kind are left.
    assert sorted(record["constant"] for record in records) == pytest.approx([math.log(5)] * 12 + [math.log(13)] * 4)
    found = task.summarise(records)
    constant = (12 * math.log(5) + 4 * math.log(13)) / 16
    assert found["alignment_skill"] == pytest.approx(1 - found["alignment"] / 2 / constant)


def test_the_best_weights_by_ndcg(encoder: Path, stage: Stage, trained_without_ray: list[str]) -> None:
    train = TRAIN.model_copy(update={"epochs": 3, "keep": "best", "best_by": "ndcg"})
    task = lrkd(encoder, stage("9-student"), train=train)
    model = task.build().eval()
    with torch.no_grad():
        records = task.predict(model, task.collate(list(task.dev_rows())))
    found = task.summarise(records)["ndcg"]
    # Each of four queries has one relevant product, which ranks r-th: NDCG is 1 / log2(1 + r).
    yes = [record["probabilities"][0] for record in records]
    ranks = []
    for query in range(4):
        own = [p for p, record in zip(yes, records, strict=True) if record["query"] == query]
        (right,) = (r["probabilities"][0] for r in records if r["query"] == query and r["label"] == 0)
        ranks.append(1 + sum(p > right for p in own))
    assert found == pytest.approx(sum(1 / math.log2(1 + rank) for rank in ranks) / 4)


def test_ndcg_needs_queries_whose_products_differ(encoder: Path, stage: Stage, run_dir: Path) -> None:
    pairs = read_table(run_dir / "1-pairs/pairs.parquet")
    alone = pairs.set_column(pairs.column_names.index("query_id"), "query_id", pairs["pair_id"])
    write_table(run_dir / "1-pairs/pairs.parquet", alone)
    train = TRAIN.model_copy(update={"keep": "best", "best_by": "ndcg"})
    with pytest.raises(UserError, match=r"student.train.best_by: 'ndcg' needs dev queries"):
        lrkd(encoder, stage("9-student"), train=train)
