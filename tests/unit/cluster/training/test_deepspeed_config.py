"""The DeepSpeed config and the order of the data, both as plain data."""

from __future__ import annotations

from collections import Counter
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from cluster.base.errors import UserError
from cluster.config import Offload, TrainSettings, Workers
from cluster.training.deepspeed_config import accumulation_steps, clips_itself, deepspeed_config
from cluster.training.driver import run_name
from cluster.training.task import epoch_batches, worker_share
from teacher.config import DpoSettings, Full, SftSettings
from teacher.sft import SftTask


def settings(**changes: object) -> TrainSettings:
    return TrainSettings(**{"global_batch": 16, "micro_batch": 4, **changes})


@pytest.mark.parametrize(("workers", "steps", "micro"), [(1, 4, 4), (2, 2, 4), (4, 1, 4), (8, 1, 2), (16, 1, 1)])
def test_the_global_batch_is_the_same_for_any_number_of_workers(workers: int, steps: int, micro: int) -> None:
    config = deepspeed_config(settings(workers=Workers(count=workers)))
    assert config["gradient_accumulation_steps"] == steps
    assert config["train_micro_batch_size_per_gpu"] == micro
    assert steps * micro * workers == config["train_batch_size"] == 16


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"workers": Workers(count=3)}, "global_batch 16 is not divisible by train.workers.count 3"),
        ({"micro_batch": 5}, "micro_batch 5 does not divide the 16 rows"),
        ({"micro_batch": 3, "workers": Workers(count=2)}, "micro_batch 3 does not divide the 8 rows"),
        ({"offload": Offload(optimizer="cpu")}, "needs zero_stage 1, 2 or 3"),
        ({"zero_stage": 2, "offload": Offload(parameters="cpu")}, "needs zero_stage 3"),
    ],
)
def test_what_does_not_divide_or_does_not_exist_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        deepspeed_config(settings(**changes))


def test_a_micro_batch_larger_than_a_workers_share_is_cut() -> None:
    assert accumulation_steps(settings(micro_batch=64)) == 1


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_stages(stage: int) -> None:
    config = deepspeed_config(settings(zero_stage=stage, max_grad_norm=0.5), "bf16")
    assert config["zero_optimization"]["stage"] == max(1, stage), "bf16 has no stage 0"
    assert deepspeed_config(settings(zero_stage=stage))["zero_optimization"]["stage"] == stage
    assert "offload_optimizer" not in config["zero_optimization"]
    assert config["bf16"] == {"enabled": True} and config["gradient_clipping"] == 0.5
    # One fp32 truth is exported by the task itself, so DeepSpeed need not gather 16-bit weights.
    assert ("stage3_gather_16bit_weights_on_model_save" in config["zero_optimization"]) == (stage == 3)


def test_offload_goes_to_the_cpu_with_pinned_memory_on_gpus_only() -> None:
    offload = Offload(optimizer="cpu", parameters="cpu")
    for gpus, pinned in ((0, False), (1, True)):
        config = deepspeed_config(settings(zero_stage=3, offload=offload, workers=Workers(gpus_per_worker=gpus)))
        expected = {"device": "cpu", "pin_memory": pinned}
        assert config["zero_optimization"]["offload_optimizer"] == expected
        assert config["zero_optimization"]["offload_param"] == expected


def test_fp32_is_not_bf16() -> None:
    assert deepspeed_config(settings(), "fp32")["bf16"] == {"enabled": False}


@pytest.mark.parametrize("buckets", [0, 1, 8])
@pytest.mark.parametrize("rows", [160, 16, 161, 175, 3, 1])
def test_every_row_is_in_an_epoch_and_only_the_filling_twice(rows: int, buckets: int) -> None:
    batches = epoch_batches(list(range(rows)), settings(length_buckets=buckets), seed=1, epoch=0)
    assert {len(batch) for batch in batches} == {16}
    counts = Counter(chain.from_iterable(batches))
    assert set(counts) == set(range(rows))
    assert sum(counts.values()) - rows == -rows % 16
    # Filling goes round: no row is taken once more before all others were.
    assert max(counts.values()) - min(counts.values()) <= 1


def test_the_batches_are_the_same_for_any_number_of_workers() -> None:
    lengths = np.random.default_rng(3).integers(1, 99, 100).tolist()
    one, four = (epoch_batches(lengths, settings(workers=Workers(count=n)), 1, 0) for n in (1, 4))
    assert one == four


def test_epochs_and_seeds_shuffle_anew() -> None:
    lengths = [1] * 64
    orders = [epoch_batches(lengths, settings(), seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[i + 1 :])
    assert orders[0] == epoch_batches(lengths, settings(), 1, 0)


def test_buckets_put_like_lengths_together_but_do_not_sort_the_epoch() -> None:
    lengths = np.random.default_rng(3).integers(1, 1000, 640).tolist()

    def padding(buckets: int) -> int:
        batches = epoch_batches(lengths, settings(length_buckets=buckets), 1, 0)
        return sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in batches)

    assert padding(40) < 0.1 * padding(0) and padding(8) < 0.3 * padding(0)
    assert padding(1) == padding(0), "the batches themselves stay as drawn"
    in_order = epoch_batches(lengths, settings(length_buckets=1), 1, 0)
    assert all(lengths[a] <= lengths[b] for batch in in_order for a, b in pairwise(batch))
    longest = [max(lengths[i] for i in b) for b in epoch_batches(lengths, settings(), 1, 0)]
    assert longest != sorted(longest)


def test_the_rows_of_a_group_meet_in_a_batch() -> None:
    groups = [n // 4 for n in range(64)]
    batches = epoch_batches([1] * 64, settings(), 1, 0, groups)
    assert Counter(chain.from_iterable(batches)) == Counter(range(64))
    for batch in batches:
        assert [groups[i] for i in batch] == [g for i in batch[::4] for g in [groups[i]] * 4]
        assert [worker_share(batch, rank, 4, True) for rank in range(4)] == [batch[i : i + 4] for i in (0, 4, 8, 12)]
    drawn = [groups[i] for i in chain.from_iterable(batches)][::4]
    again = [groups[i] for i in chain.from_iterable(epoch_batches([1] * 64, settings(), 1, 1, groups))][::4]
    assert sorted(drawn) == sorted(again) == list(range(16)) and drawn != again
    within = [
        tuple(i for i in chain.from_iterable(epoch_batches([1] * 64, settings(), seed, 0, groups)) if groups[i] == 0)
        for seed in range(6)
    ]
    assert len(set(within)) > 1, "the rows of a group are shuffled too"


def test_a_large_group_is_cut_and_loses_no_row() -> None:
    batches = epoch_batches([1] * 40, settings(), 1, 0, [0] * 30 + [1] * 10)
    assert set(chain.from_iterable(batches)) == set(range(40)) and {len(batch) for batch in batches} == {16}


def test_without_groups_workers_take_turns() -> None:
    assert [worker_share([5, 6, 7, 8], rank, 2, False) for rank in (0, 1)] == [[5, 7], [6, 8]]


def test_steps_stand_for_epochs() -> None:
    assert settings(epochs=3).steps_over(33) == 9 and settings(epochs=3, steps=5).steps_over(33) == 5
    assert settings(epochs=1, steps=90, keep="best", best_by="loss", patience_evaluations=4).steps == 90


def test_a_rate_for_heads_needs_a_head() -> None:
    rates = settings(head_learning_rate=1e-3)
    for section, own in (("sft", SftSettings), ("dpo", DpoSettings)):
        with pytest.raises(ValidationError, match=f"{section}.train.head_learning_rate has no effect"):
            own(train=rates)


def test_mixed_precision_keeps_weights_in_fp32_and_multiplies_in_bf16() -> None:
    plan = deepspeed_config(settings(), "bf16_mixed")
    assert plan["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"} and not plan["bf16"]["enabled"]
    assert not deepspeed_config(settings(), "bf16")["torch_autocast"]["enabled"]
    assert [clips_itself(settings(), precision) for precision in ("fp32", "bf16_mixed", "bf16")] == [True, True, False]


def test_a_checkpoint_of_another_number_of_workers_is_refused(tmp_path: Path) -> None:
    def name(workers: int, **changes: object) -> str:
        train = settings(workers=Workers(count=workers), **changes)
        return run_name(SftTask(train, 5, str(tmp_path), "model", Full(), 128, 1.0), str(tmp_path), "sft")

    two = name(2)
    assert two != name(1) and two == name(2), "no checkpoint yet: either may start"
    (tmp_path / two).mkdir()
    assert name(1).endswith("-1w"), "started, but nothing was saved"
    (tmp_path / two / "checkpoint_2026-11-25").mkdir()
    with pytest.raises(UserError, match=r"workers.count is 1, but .* interrupted with 2 workers.*Set it to 2"):
        name(1)
    assert name(2) == two
    assert name(1, epochs=9).endswith("-1w"), "other settings are another training"
