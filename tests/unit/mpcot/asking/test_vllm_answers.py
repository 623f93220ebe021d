"""What is read from vLLM's answers, by way of its own processor of outputs: the text and the labels' probabilities."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpcot.asking.engines.vllm_engine import Vllm, sampling, steps_from_end
from mpcot.asking.parsing import LabelTokens
from mpcot.asking.prompts import answer
from mpcot.config import AnswerSettings
from mpcot.schemes.scheme import load_scheme
from tests.helpers.tiny_llama import tiny_llama_tokenizer

pytest.importorskip("vllm")
TOKENIZER = tiny_llama_tokenizer()
LABELS = LabelTokens.of(TOKENIZER, load_scheme("esci"))
PROMPT = TOKENIZER.encode("Query: red drill<assistant>")


def processed(ids: list[int], parameters: Any, finish: str) -> Any:
    """Return vLLM's completion of a request that gave `ids`; at each place label number i has -1 - i."""
    from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.outputs import LogprobsLists

    processor = OutputProcessor(TOKENIZER, log_stats=False)
    request = EngineCoreRequest("r", PROMPT, None, parameters, None, 0.0, None, None, None, external_req_id="r")
    processor.add_request(request, None)
    known = np.array([[-0.5, *(-1.0 - place for place in range(len(LABELS.all)))]], dtype=np.float32)
    for place, token in enumerate(ids, 1):
        lists = LogprobsLists(np.array([[token, *LABELS.all]]), known, np.array([1]), None)
        ended = FinishReason[finish] if place == len(ids) else None
        told = processor.process_outputs([EngineCoreOutput("r", [token], lists, finish_reason=ended)])
    ((output,),) = [told.request_outputs]
    return output.outputs[0]


@pytest.mark.parametrize(("text", "finish"), [("Größe 12 \N{ELECTRIC TORCH} passt.", "STOP"), ("It is a dr", "LENGTH")])
def test_the_text_is_what_vllm_itself_would_write(text: str, finish: str) -> None:
    ids = TOKENIZER.encode(answer(text, "S") if finish == "STOP" else text)
    ids += [TOKENIZER.eos_token_id] if finish == "STOP" else []
    ours = sampling(AnswerSettings(), ".*", LABELS.all, 7)
    theirs = sampling(AnswerSettings(), ".*", LABELS.all, 7)
    theirs.detokenize, theirs.flat_logprobs = True, False
    said, written = processed(ids, ours, finish), processed(ids, theirs, finish)
    assert said.text == "" and written.text.startswith(text)
    assert Vllm._text(SimpleNamespace(tokenizer=TOKENIZER), said) == written.text
    assert said.finish_reason == written.finish_reason


def test_log_probabilities_are_read_from_the_verdict_alone() -> None:
    ids = [*TOKENIZER.encode(answer("It is a drill.", "S")), TOKENIZER.eos_token_id]
    said = processed(ids, sampling(AnswerSettings(), ".*", LABELS.all, 7), "STOP")
    read: list[int] = []

    class Noting:
        def __len__(self) -> int:
            return len(said.logprobs)

        def __getitem__(self, place: int) -> Any:
            read.append(place)
            return said.logprobs[place]

    found = LABELS.logprobs(steps_from_end(SimpleNamespace(token_ids=ids, logprobs=Noting())))
    assert found == [-1.0, -2.0, -3.0, -4.0]
    assert read == [len(ids) - 1, len(ids) - 2]
