"""Log-probabilities that vLLM gives the tokens of texts: `python -m tests.helpers.vllm_logprobs MODEL OUT TEXT…`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cluster.base.stage_folder import write_json
from mpcot.asking.engines.vllm_engine import engine_arguments, engine_environment
from mpcot.config import VllmEngine

ENGINE = VllmEngine(max_model_len=256, enforce_eager=True, dtype="float32", max_num_seqs=8)


def main() -> None:
    model, out, *texts = sys.argv[1:]
    os.environ.update(engine_environment(ENGINE, False, sorted(os.sched_getaffinity(0)), shared_node=False))
    from vllm import LLM, SamplingParams

    engine = LLM(**engine_arguments(ENGINE, model, gpu=False))
    said = engine.generate(texts, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    told = [
        {"ids": ids, "logprobs": [known[token].logprob for token, known in zip(ids[1:], steps[1:], strict=True)]}
        for ids, steps in ((list(output.prompt_token_ids), output.prompt_logprobs) for output in said)
    ]
    write_json(Path(out), told)
    engine.llm_engine.engine_core.shutdown()
    os._exit(0)  # vLLM's threads may abort a process that ends in the usual way


if __name__ == "__main__":
    main()
