"""Preferences as data: prompts of both sides, and reference log-probabilities as a live model has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.base.errors import UserError
from cluster.config import TrainSettings
from cluster.training.arrow_rows import write_rows
from mpcot.config import PerspectiveSettings, SampleSettings
from mpcot.perspectives.perspective import joint, load_perspectives
from mpcot.records import PREFERENCE
from mpcot.sources.config import LabelSettings
from teacher.answer_tokens import IGNORED, encode
from teacher.config import DpoSettings, Lora, PreferenceSettings, PreferenceStage
from teacher.dpo import DpoTask
from teacher.fitting import Fitting
from teacher.losses import sequence_logprobs
from teacher.model import EAGER_TOKENS, load_tokenizer
from teacher.preferences.conflicts import Candidate, Preference
from teacher.preferences.reference_logprobs import SIDES, ReferenceScorer, fill_logprobs, preference_kernel
from teacher.preferences.stage import preference_table
from teacher.sft import AnswerTask

PAIR = {"query": "red drill", "title": "a drill case", "brand": None, "description": None, "split": "train"}
STAGE = PreferenceStage(
    seed=1,
    labels=LabelSettings(),
    perspectives=PerspectiveSettings(),
    samples=SampleSettings(guide="short", description_chars=0),
    preferences=PreferenceSettings(prompt="own"),
    dpo=DpoSettings(),
)


def candidate(pair: str, perspective: str, verdict: str, words: str) -> Candidate:
    return Candidate(pair, perspective, 0, words, verdict, None)


@pytest.fixture
def table(llama_folder: Path) -> pa.Table:
    return rendered(llama_folder)


def rendered(llama_folder: Path, prompt: str = "own", max_tokens: int = 1024, **changes: str) -> pa.Table:
    found = [
        Preference(
            candidate("p0", "rules", "C", "A case is not the tool."), candidate("p0", "intent", "E", "It fits.")
        ),
        Preference(
            candidate("p1", "intent", "C", "The shopper wants to drill holes; a case holds the drill and does not."),
            candidate("p1", "intent", "S", "It could be bought instead."),
        ),
    ]
    stage = STAGE.model_copy(update={"preferences": PreferenceSettings.model_validate({"prompt": prompt})})
    pairs = {"p0": PAIR | changes, "p1": PAIR | changes | {"split": "dev"}}
    return preference_table(found, pairs, stage, Fitting(load_tokenizer(str(llama_folder)), max_tokens))


def test_each_side_has_the_prompt_of_its_own_perspective(table: pa.Table) -> None:
    first = table.to_pylist()[0]
    assert first["chosen"] == "A case is not the tool.\nVerdict: C" and first["rejected"] == "It fits.\nVerdict: E"
    assert first["chosen_prompt"] != first["rejected_prompt"]
    assert "red drill" in first["chosen_prompt"] and "red drill" in first["rejected_prompt"]
    second = table.to_pylist()[1]
    assert second["chosen_prompt"] == second["rejected_prompt"] == first["rejected_prompt"]
    assert table["split"].to_pylist() == ["train", "dev"] and table.schema.equals(PREFERENCE)


def test_both_answers_have_the_question_of_the_rejected_one(table: pa.Table, llama_folder: Path) -> None:
    assert PreferenceSettings().prompt == "rejected"
    for row, own in zip(rendered(llama_folder, "rejected").to_pylist(), table.to_pylist(), strict=True):
        assert row["chosen_prompt"] == row["rejected_prompt"] == own["rejected_prompt"]
        assert (row["chosen"], row["chosen_perspective"]) == (own["chosen"], own["chosen_perspective"])


def test_one_prompt_is_shortened_for_the_longer_of_the_two_answers(llama_folder: Path) -> None:
    tokenizer = load_tokenizer(str(llama_folder))

    def size(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    title = "a case for a red drill with a battery and bits " * 8
    whole = rendered(llama_folder, "rejected", title=title).to_pylist()[1]
    tokens = {name: size(whole[name]) for name in ("chosen_prompt", "chosen", "rejected")}
    shorter, longer = sorted((tokens["chosen"], tokens["rejected"]))
    most = tokens["chosen_prompt"] + shorter + 1  # the shorter answer has room beside the whole title
    assert longer > shorter
    cut = rendered(llama_folder, "rejected", most, title=title).to_pylist()[1]
    assert cut["chosen_prompt"] == cut["rejected_prompt"] != whole["chosen_prompt"]
    assert size(cut["chosen_prompt"]) + longer + 1 <= most


def test_a_joint_question_names_every_perspective(llama_folder: Path) -> None:
    asked = load_perspectives(STAGE.perspectives)
    for row in rendered(llama_folder, "joint").to_pylist():
        assert row["chosen_prompt"] == row["rejected_prompt"]
        assert all(f"{p.name}: {p.question}" in row["chosen_prompt"] for p in asked)


def test_the_examples_of_a_joint_question_take_turns() -> None:
    asked = load_perspectives(PerspectiveSettings(names=("intent", "rules")))
    first, second = asked[0].examples[0], asked[1].examples[0]
    assert joint(asked).examples[:2] == (first, second)
    assert len(joint(asked).examples) == sum(len(p.examples) for p in asked)


def test_under_one_prompt_the_references_are_those_of_that_prompt(table: pa.Table, llama_folder: Path) -> None:
    """The rejected answer's column stays as it was, and the chosen one's moves with its question."""
    own, one = (scored(each, llama_folder) for each in (table, rendered(llama_folder, "rejected")))
    first, second = table["preference_id"].to_pylist()
    assert one[first][1] == pytest.approx(own[first][1], abs=1e-4)
    assert one[first][0] != pytest.approx(own[first][0], abs=1e-3)
    assert one[second] == pytest.approx(own[second], abs=1e-4), "one perspective: one question in any case"


def scored(
    table: pa.Table, folder: Path, share: bool = True, precision: str = "fp32"
) -> dict[str, tuple[float, float]]:
    scorer = ReferenceScorer(str(folder), 1024, share, precision, 1)
    batch = {name: np.asarray(table[name].to_pylist(), dtype=object) for name in table.column_names}
    out = scorer(batch)
    sides = zip(out["chosen_logprob"].tolist(), out["rejected_logprob"].tolist(), strict=True)
    return dict(zip(out["preference_id"], sides, strict=True))


@pytest.mark.parametrize("share", [True, False])
def test_reference_columns_equal_a_live_computation(table: pa.Table, llama_folder: Path, share: bool) -> None:
    filled = fill_logprobs(table, scored(table, llama_folder, share)).to_pylist()
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32).eval()
    tokenizer = AnswerTask.tokenizer(task(llama_folder, llama_folder))
    for row in filled:
        for side in ("chosen", "rejected"):
            ids, labels = encode(tokenizer, row[f"{side}_prompt"], row[side], 1024)
            with torch.no_grad():
                shares = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)
            live = sum(shares[i - 1, ids[i]].item() for i, label in enumerate(labels) if label != IGNORED)
            assert row[f"{side}_reference_logprob"] == pytest.approx(live, abs=1e-4)


def by_row(table: pa.Table, found: Any) -> list[tuple[float, float]]:
    half = len(table)
    return list(zip(found[:half].tolist(), found[half:].tolist(), strict=True))


def test_padding_on_the_left_changes_no_reference(table: pa.Table, llama_folder: Path) -> None:
    """The columns, padded on the right, against a live model whose batch is padded on the left."""
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32).eval()
    tokenizer = AnswerTask.tokenizer(task(llama_folder, llama_folder))
    rows = table.to_pylist()
    examples = [encode(tokenizer, row[f"{side}_prompt"], row[side], 1024) for side in SIDES for row in rows]
    length = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([[tokenizer.pad_token_id] * (length - len(ids)) + ids for ids, _ in examples])
    learnt = torch.tensor([[IGNORED] * (length - len(labels)) + labels for _, labels in examples])
    mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids, _ in examples])
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    shares = torch.log_softmax(out.logits[:, :-1], -1).gather(2, ids[:, 1:, None])[..., 0]
    live = torch.where(learnt[:, 1:] != IGNORED, shares, 0.0).sum(1)
    columns = scored(table, llama_folder)
    for row, expected in zip(rows, by_row(table, live), strict=True):
        assert columns[row["preference_id"]] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_mixed"])
def test_the_reference_is_the_model_in_training_without_its_adapters(
    table: pa.Table, llama_folder: Path, tmp_path: Path, precision: str
) -> None:
    """The batch is the same, so bf16 rounds the same numbers and needs no wider tolerance."""
    rows = fill_logprobs(table, scored(table, llama_folder, precision=precision)).to_pylist()
    train = TrainSettings(precision=precision, epochs=1)
    dpo = DpoTask(train, 1, str(tmp_path), str(llama_folder), Lora(rank=4, alpha=64), 1024, DpoSettings())
    torch.manual_seed(0)
    model: Any = dpo.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        batch = dpo.collate(rows)
        # DeepSpeed's engine enters the same context around its forward pass.
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16_mixed"):
            moved = sequence_logprobs(model, batch)[0]
            with model.disable_adapter():
                live = sequence_logprobs(model, batch)[0]
    assert (moved - live).abs().max() > 0.1, "the adapters do something"
    assert live.tolist() == pytest.approx(batch["reference"].tolist(), abs=1e-4)


def test_reference_and_training_choose_the_same_kernel_by_what_they_compute(
    table: pa.Table, llama_folder: Path
) -> None:
    """Two answers behind one prompt are longer than either alone, so sharing decides which kernel is taken."""
    tokenizer = load_tokenizer(str(llama_folder))
    row = table.to_pylist()[1]
    while sum(len(tokenizer.encode(row[name])) for name in ("chosen_prompt", "chosen", "rejected")) <= EAGER_TOKENS:
        row |= {side: row[side] + " a drill case" for side in SIDES}
    longer = pa.Table.from_pylist([row], PREFERENCE)
    kernels = [
        preference_kernel(longer, tokenizer, DpoSettings(share_prompts=share), gpu=False) for share in (True, False)
    ]
    assert kernels == [None, "eager"]
    assert preference_kernel(table.slice(0, 0), tokenizer, DpoSettings(), gpu=True) is None
    for kernel in kernels:
        scorer = ReferenceScorer(str(llama_folder), 1024, True, "fp32", 1, attention=kernel)
        dpo = DpoTask(TrainSettings(), 1, "", str(llama_folder), Lora(rank=2), 1024, DpoSettings(), attention=kernel)
        learning: Any = dpo.build()
        assert scorer.model.config._attn_implementation == learning.config._attn_implementation == (kernel or "sdpa")


def test_in_bf16_neighbours_move_a_token_by_its_rounding_only(table: pa.Table, llama_folder: Path) -> None:
    """A kernel may add in another order for another batch; 8 bits of mantissa make that 2 ** -8 of a number near 1."""
    together = scored(table, llama_folder, precision="bf16")
    exact = scored(table, llama_folder)
    tokenizer = AnswerTask.tokenizer(task(llama_folder, llama_folder))
    for place, row in enumerate(table.to_pylist()):
        alone = scored(table.slice(place, 1), llama_folder, precision="bf16")[row["preference_id"]]
        for side, one, many, full in zip(
            SIDES, alone, together[row["preference_id"]], exact[row["preference_id"]], strict=True
        ):
            room = 2**-8 * (len(tokenizer.encode(row[side])) + 1)
            assert one == pytest.approx(many, abs=room) and many == pytest.approx(full, abs=4 * room)


def test_scores_are_put_in_by_id_whatever_their_order(table: pa.Table) -> None:
    ids = table["preference_id"].to_pylist()
    filled = fill_logprobs(table, {ids[1]: (-3.0, -4.0), ids[0]: (-1.0, -2.0)})
    assert filled["chosen_reference_logprob"].to_pylist() == [-1.0, -3.0]
    assert filled["rejected_reference_logprob"].to_pylist() == [-2.0, -4.0]
    assert filled.schema.equals(PREFERENCE)
    with pytest.raises(UserError, match=f"1 rows have no reference log-probabilities; the first is {ids[0]}"):
        fill_logprobs(table, {ids[1]: (-3.0, -4.0)})


def task(folder: Path, model: Path, **dpo: Any) -> DpoTask:
    settings = TrainSettings(precision="fp32", epochs=1)
    return DpoTask(settings, 1, str(folder), str(model), Lora(rank=2), 1024, DpoSettings(**dpo))


def test_before_training_every_margin_is_zero(table: pa.Table, llama_folder: Path, tmp_path: Path) -> None:
    """The reference columns and the model that starts are the same model: loss ln 2, margin 0."""
    rows = fill_logprobs(table, scored(table, llama_folder))
    write_rows(tmp_path / "dev.arrow", rows)
    dpo = task(tmp_path, llama_folder)
    model = dpo.build().eval()
    batch = dpo.collate(dpo.dev_rows()[0:2])
    assert batch["units"] == 2 and batch["input_ids"].shape[0] == 2
    found = dpo.predict(model, batch)
    assert [r["margin"] for r in found] == pytest.approx([0, 0], abs=1e-4)
    figures = dpo.summarise(found)
    assert figures["loss"] == pytest.approx(np.log(2), abs=1e-4)
    total, sums = dpo.loss(model, batch)
    assert total.item() == pytest.approx(2 * np.log(2), abs=1e-4) and set(sums) == {"margin", "accuracy"}
    total.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_normalising_divides_both_models_by_the_answers_length(
    table: pa.Table, llama_folder: Path, tmp_path: Path
) -> None:
    ids = table["preference_id"].to_pylist()
    rows = fill_logprobs(table, {i: (-10.0, -20.0) for i in ids}).to_pylist()
    plain, per_token = task(tmp_path, llama_folder), task(tmp_path, llama_folder, length_normalised=True)
    model = plain.build().eval()
    batch = plain.collate(rows)
    sums, counts = (values.tolist() for values in sequence_logprobs(model, batch))
    expected = [0.1 * ((sums[i] + 10) / counts[i] - (sums[i + 2] + 20) / counts[i + 2]) for i in range(2)]
    assert [r["margin"] for r in per_token.predict(model, batch)] == pytest.approx(expected, abs=1e-4)
    whole = [0.1 * ((sums[i] + 10) - (sums[i + 2] + 20)) for i in range(2)]
    assert [r["margin"] for r in plain.predict(model, batch)] == pytest.approx(whole, abs=1e-4)


def test_the_sft_part_adds_the_chosen_answers_nll_per_token(
    table: pa.Table, llama_folder: Path, tmp_path: Path
) -> None:
    rows = fill_logprobs(table, scored(table, llama_folder)).to_pylist()
    plain, mixed = task(tmp_path, llama_folder), task(tmp_path, llama_folder, sft_weight=0.5)
    model = plain.build().eval()
    batch = plain.collate(rows)
    nll = sum(r["nll"] for r in plain.predict(model, batch))
    assert nll > 0
    added = mixed.loss(model, batch)[0] - plain.loss(model, batch)[0]
    assert added.item() == pytest.approx(0.5 * nll, rel=1e-4)
    dev = mixed.summarise(mixed.predict(model, batch))["loss"]
    assert dev == pytest.approx(mixed.loss(model, batch)[0].item() / 2, rel=1e-5), "on dev as in training"
