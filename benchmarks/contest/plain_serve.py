"""sentence-transformers behind Ray Serve as in its documentation, where `@serve.batch` makes the batches."""

from __future__ import annotations

from typing import Any

from ray import serve as ray_serve
from starlette.requests import Request

MAX_BATCH, WAIT_S = 16, 0.005  # requests


@ray_serve.deployment(name="plain", max_ongoing_requests=512)
class Plain:
    """Answers each request's products with probabilities and nothing else."""

    def __init__(self, folder: str, threads: int) -> None:
        import torch
        from sentence_transformers import CrossEncoder

        torch.set_num_threads(threads)
        self.peer = CrossEncoder(folder, max_length=128, device="cpu")

    @ray_serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_S)
    async def score(self, requests: list[dict[str, Any]]) -> list[list[list[float]]]:
        """Score the products of several requests at once."""
        texts = [(r["query"], f"{p['title']} {p['description']}") for r in requests for p in r["products"]]
        found = iter(self.peer.predict(texts, apply_softmax=True, show_progress_bar=False).tolist())
        return [[next(found) for _ in request["products"]] for request in requests]

    async def __call__(self, request: Request) -> list[list[float]]:
        return await self.score(await request.json())
