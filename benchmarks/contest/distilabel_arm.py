"""The generation job in distilabel, for an environment with distilabel and the same vLLM.

It is called as `distilabel_arm.py JOB --told FILE`. distilabel 1.5 was written for an older vLLM and does not run with
this one unless three things are corrected: an argument that vLLM no longer takes, structured outputs, which are now
set in another way, and how the engine is released.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import vllm
from distilabel.models.llms import vLLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration
from vllm import LLM, SamplingParams  # noqa: F401  # LLM's own annotations need the class that is replaced
from vllm.sampling_params import StructuredOutputsParams


class Engine(vLLM):  # type: ignore[misc]
    """distilabel's engine for this vLLM.

    `form` is the regular expression of an answer. The seconds of the engine's start are written to the file `noted`.
    """

    form: str
    noted: str

    def load(self) -> None:
        """Start the engine, wherever distilabel's step runs."""
        form = StructuredOutputsParams(regex=self.form)

        def parameters(logits_processors: Any = None, **given: Any) -> SamplingParams:
            return SamplingParams(structured_outputs=form, **given)

        vllm.SamplingParams = parameters
        started = time.monotonic()
        super().load()
        Path(self.noted).write_text(str(time.monotonic() - started), encoding="utf-8")

    def _cleanup_vllm_model(self) -> None:
        self._model = None


def main() -> None:
    job, told = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[3])
    os.environ.update(job["environment"])
    noted = told.with_suffix(".start")
    own = {name: value for name, value in job["engine"].items() if name in Engine.model_fields}
    other = {name: value for name, value in job["engine"].items() if name not in own}
    given = {"extra_kwargs": other, "disable_cuda_device_placement": True, "generation_kwargs": job["sampling"]}
    given |= {"form": job["form"], "noted": str(noted)}
    with Pipeline(name="job") as pipeline:
        rows = LoadDataFromDicts(data=job["rows"], batch_size=job["batch"])
        llm = Engine(**own, **given)
        rows >> TextGeneration(llm=llm, input_batch_size=job["batch"])
    started = time.monotonic()
    said = pipeline.run(use_cache=False)["default"]["train"]
    seconds = time.monotonic() - started
    start_s = float(noted.read_text(encoding="utf-8"))
    tokens = [meta["statistics_text_generation_0"] for meta in said["distilabel_metadata"]]
    prompt, output = (sum(one[f"{side}_tokens"] for one in tokens) for side in ("input", "output"))
    row = {"answers": len(said), "prompt_tokens": prompt, "cached_tokens": 0, "output_tokens": output}
    row |= {"seconds": seconds - start_s, "engine_start_s": start_s}
    told.write_text(json.dumps(row), encoding="utf-8")


if __name__ == "__main__":
    main()
