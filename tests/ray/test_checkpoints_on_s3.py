"""A training whose checkpoints lie on S3 storage: a server of the test's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.base.errors import UserError
from cluster.config import Workers
from cluster.training.driver import run_training
from tests.helpers.local_s3 import s3_folder, stored
from tests.helpers.one_worker import training_here
from tests.helpers.training_tasks import Killed, lora_with_dropout, settings, sft_task

pytestmark = pytest.mark.usefixtures("local_ray", "group")


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    with s3_folder() as uri:
        yield uri


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=torch.arange(5, 69).reshape(2, 32)).logits


def test_a_killed_training_goes_on_from_s3(storage: str, llama_folder: Path, tmp_path: Path) -> None:
    """Killed in step 8 of 12; its checkpoint of step 6 lies in the bucket only, and the end is that of a calm run."""
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir()
    rough.mkdir()
    expected = training_here(sft_task(calm, llama_folder, settings(), lora_with_dropout()), calm / "out")
    on_s3 = settings(checkpoints=storage).model_copy(update={"workers": Workers(max_failures=0)})
    task = Killed(**vars(sft_task(rough, llama_folder, on_s3, lora_with_dropout())), at=(15,))
    with pytest.raises(UserError, match="sft: the training failed"):
        run_training(task, rough / "out", "sft")
    assert any("/checkpoint_" in path and path.endswith("model_states.pt") for path in stored(storage))
    assert not list((rough / "out").rglob("*.pt")), "nothing of it lies beside the results"
    result = run_training(task, rough / "out", "sft")
    assert list(Counter((rough / "passes").read_text().splitlines()).values()) == [15, 12]
    assert torch.equal(logits(result.model), logits(expected.model))
    assert not stored(storage), "a finished training leaves none"
