"""The teacher's losses against plain computations, by hand-worked values and by limits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from mpcot.asking.prompts import answer
from teacher.answer_tokens import IGNORED, PADDING, Example, encode, pad, share
from teacher.config import DpoSettings
from teacher.losses import answer_logprobs, preference_loss, sequence_logprobs, verdict_weights
from tests.helpers.tiny_llama import tiny_llama_tokenizer

TOKENIZER = tiny_llama_tokenizer()
TEXTS = [
    ("Query: drill", answer("It is a drill.", "E")),
    ("Query: red drill\nProduct: a case, " * 4, answer("The case only holds a drill.", "C")),
    ("Why?", answer("The shopper wants to drill holes; this does exactly that, with two batteries.", "S")),
]
EXAMPLES = [encode(TOKENIZER, prompt, said, 200) for prompt, said in TEXTS]


def batch_of(examples: list[Example]) -> dict[str, Any]:
    """One sequence per answer."""
    return pad([share([e], [n]) for n, e in enumerate(examples)], TOKENIZER.pad_token_id)


@pytest.fixture(scope="module")
def model(llama_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32).eval()


def by_hand(model: Any, example: tuple[list[int], list[int]]) -> list[float]:
    """Log-probabilities of one example's answer tokens from all logits, one token after the other."""
    ids, labels = example
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    places = [place for place, label in enumerate(labels) if label != IGNORED and place > 0]
    return [torch.log_softmax(logits[place - 1], -1)[ids[place]].item() for place in places]


def test_answer_logprobs_are_those_of_the_full_logits(model: Any) -> None:
    logprobs, rows = answer_logprobs(model, batch_of(EXAMPLES))
    for row, example in enumerate(EXAMPLES):
        assert logprobs[rows == row].tolist() == pytest.approx(by_hand(model, example), abs=1e-5)
    assert rows.tolist() == sorted(rows.tolist())


def test_only_answer_tokens_are_counted(model: Any) -> None:
    batch = batch_of(EXAMPLES)
    sums, counts = sequence_logprobs(model, batch)
    assert counts.tolist() == [len(TOKENIZER.encode(said)) + 1 for _, said in TEXTS]
    assert sums.tolist() == pytest.approx([sum(by_hand(model, e)) for e in EXAMPLES], abs=1e-4)
    other = {**batch, "labels": batch["labels"].clone()}
    other["labels"][1] = IGNORED
    sums, counts = sequence_logprobs(model, other)
    assert sums[1] == 0 and counts[1] == 0 and sums[0] != 0


SHARED_PROMPT = "Query: red drill\nProduct: a case for drills\n\n"
PAIR = [
    encode(TOKENIZER, SHARED_PROMPT + question, said, 200)
    for question, said in (
        ("What does the shopper want?", answer("To drill holes, and a case does not.", "C")),
        ("Compare size and colour.", answer("Red is asked.", "S")),
        ("Compare size and colour.", answer("No colour is offered, though red is asked for.", "C")),
    )
]


def test_the_verdicts_tokens_weigh_more_wherever_an_answer_lies() -> None:
    owners = torch.tensor([1, 1, 1, 1, 0, 0, 0, 2, 2])
    found = verdict_weights(owners, torch.tensor([1, 2, 0]), 5.0)
    assert found.tolist() == [1, 5, 5, 1, 1, 5, 1, 1, 1], "the last token of an answer ends the text"


@pytest.mark.parametrize("loading", ["sdpa", "eager"])
def test_answers_that_share_their_prompt_score_as_they_do_alone(llama_folder: Path, loading: str) -> None:
    """Values and gradients, whatever the neighbours and the padding."""
    found = []
    for sequences in (
        [share([example], [n]) for n, example in enumerate([*PAIR, *EXAMPLES])],
        [share(PAIR, [0, 1, 2]), share(EXAMPLES[:1], [3]), share(EXAMPLES[1:], [4, 5])],
    ):
        trained = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32, attn_implementation=loading)
        batch = pad(sequences, TOKENIZER.pad_token_id)
        sums, counts = sequence_logprobs(trained, batch)
        (sums / counts).sum().backward()
        grads = torch.cat([p.grad.flatten() for p in trained.parameters() if p.grad is not None])
        found.append((batch["input_ids"].numel(), sums.detach(), counts, grads))
    (alone_size, alone, alone_counts, alone_grads), (size, sums, counts, grads) = found
    assert size < alone_size
    assert counts.tolist() == alone_counts.tolist()
    assert torch.allclose(sums, alone, atol=1e-4)
    assert torch.allclose(grads, alone_grads, atol=1e-5, rtol=1e-4)


def test_an_answer_does_not_see_another_of_its_sequence(model: Any) -> None:
    batch = pad([share(PAIR, [0, 1, 2])], TOKENIZER.pad_token_id)
    before = sequence_logprobs(model, batch)[0]
    noise = {**batch, "input_ids": torch.where(batch["branches"] == 2, 77, batch["input_ids"])}
    after = sequence_logprobs(model, noise)[0]
    assert torch.allclose(before[[0, 2]], after[[0, 2]], atol=1e-5) and before[1] != after[1]


def test_an_example_does_not_depend_on_its_neighbours(model: Any) -> None:
    together = sequence_logprobs(model, batch_of(EXAMPLES))[0]
    for place, example in enumerate(EXAMPLES):
        alone = sequence_logprobs(model, batch_of([example]))[0]
        assert alone.item() == pytest.approx(together[place].item(), abs=1e-4)
    noise = batch_of(EXAMPLES)
    noise["input_ids"][noise["branches"] == PADDING] = 77
    assert torch.allclose(sequence_logprobs(model, noise)[0], together, atol=1e-4)


def test_a_first_token_without_a_predecessor_is_not_predicted(model: Any) -> None:
    logprobs, _ = answer_logprobs(model, batch_of([([5, 6, 7], [5, 6, 7])]))
    assert len(logprobs) == 2
    assert torch.isfinite(logprobs).all() and (logprobs < 0).all()


def test_gradients_reach_the_model_from_answers_only(llama_folder: Path) -> None:
    trained = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    batch = batch_of(EXAMPLES)
    answer_logprobs(trained, batch)[0].sum().backward()
    grads = {name: p.grad for name, p in trained.named_parameters()}
    assert all(g is not None and g.abs().sum() > 0 for g in grads.values())


def test_the_preference_loss_by_hand() -> None:
    """Rafailov et al., eq. 7: gap = (-10 + 12) - (-15 + 14) = 3; beta 0.1: -ln sigmoid(0.3)."""
    values = [torch.tensor([v]) for v in (-10.0, -15.0, -12.0, -14.0)]
    loss, margin = preference_loss(*values, beta=0.1)
    assert margin.item() == pytest.approx(0.3)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.3)), abs=1e-6)
    assert loss.item() == pytest.approx(0.554355, abs=1e-5)
    flipped, opposite = preference_loss(values[1], values[0], values[3], values[2], beta=0.1)
    assert opposite.item() == pytest.approx(-0.3) and flipped.item() == pytest.approx(0.854355, abs=1e-5)


def test_before_training_the_loss_is_ln_2_whatever_beta() -> None:
    same = torch.tensor([-7.0, -9.0])
    for beta in (0.01, 0.1, 5.0):
        loss, margin = preference_loss(same, same - 3, same, same - 3, beta)
        assert loss.tolist() == pytest.approx([math.log(2)] * 2) and margin.tolist() == [0.0, 0.0]


def test_cdpo_mixes_the_flipped_preference() -> None:
    """Smoothing 0.25 of a gap of 3 at beta 0.1: 0.75 * 0.554355 + 0.25 * 0.854355."""
    values = [torch.tensor([v]) for v in (-10.0, -15.0, -12.0, -14.0)]
    loss, margin = preference_loss(*values, beta=0.1, label_smoothing=0.25)
    assert loss.item() == pytest.approx(0.629355, abs=1e-5) and margin.item() == pytest.approx(0.3)


def test_cdpo_has_its_least_loss_at_a_finite_gap() -> None:
    """Mitchell's note: with smoothing e the best gap is ln((1 - e) / e) / beta, not infinity."""
    gap = torch.linspace(-10, 10, 4001)
    zero = torch.zeros_like(gap)
    loss, _ = preference_loss(gap, zero, zero, zero, beta=1.0, label_smoothing=0.1)
    assert gap[loss.argmin()].item() == pytest.approx(math.log(9), abs=0.01)
    plain, _ = preference_loss(gap, zero, zero, zero, beta=1.0)
    assert gap[plain.argmin()].item() == pytest.approx(10.0)


def test_ipo_wants_a_gap_of_one_over_two_beta() -> None:
    gap = torch.tensor([0.0, 5.0, 10.0])
    zero = torch.zeros(3)
    loss, margin = preference_loss(gap, zero, zero, zero, beta=0.1, kind="ipo")
    assert loss.tolist() == pytest.approx([25.0, 0.0, 25.0]) and margin.tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_smoothing_has_no_place_in_ipo() -> None:
    with pytest.raises(ValidationError, match=r"label_smoothing 0\.1 has no effect with loss = 'ipo'"):
        DpoSettings(loss="ipo", label_smoothing=0.1)
    assert DpoSettings(label_smoothing=0.1).loss == "sigmoid"


def test_the_loss_stays_finite_far_out() -> None:
    far = torch.tensor([1e4, -1e4])
    loss, _ = preference_loss(far, -far, torch.zeros(2), torch.zeros(2), beta=1.0)
    assert torch.isfinite(loss).all() and loss[0] == 0 and loss[1] == 2e4


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_gradients_pull_the_chosen_up_and_the_rejected_down(kind: str) -> None:
    chosen, rejected = (torch.tensor([v], requires_grad=True) for v in (-5.0, -4.0))
    loss, _ = preference_loss(chosen, rejected, torch.tensor([-5.0]), torch.tensor([-4.0]), 0.1, kind)
    loss.sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() < 0 < rejected.grad.item()
    assert chosen.grad.item() == pytest.approx(-rejected.grad.item())
