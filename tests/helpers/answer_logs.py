"""A log of answers as replicas leave it, without a model."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from serve.http.schemas import ProductInput, Result, ScoreInput, ScoreResponse
from serve.watching.answer_log import AnswerLog
from serve.watching.config import AnswerLogSettings

CODES = ("E", "S", "C", "I")


def write_answers(folder: Path, queries: int, model: str = "shop@1", products: int = 2, labels: str = "ESCI") -> Path:
    """Log so many requests of a few products each; the labels take turns."""
    with closing(AnswerLog(AnswerLogSettings(folder=folder, share=1))) as log:
        for n in range(queries):
            given = [ProductInput(id=str(p), title=f"red lamp {n} {p}", brand="Glow") for p in range(products)]
            found = [
                Result(
                    id=one.id,
                    label=labels[(n + p) % len(labels)],
                    score=0.5,
                    probabilities=dict.fromkeys(CODES, 0.25),
                    perspectives={},
                )
                for p, one in enumerate(given)
            ]
            response = ScoreResponse(model=model, results=found)
            log.note(ScoreInput(query=f"red lamp {n}", products=given), f"r{n}", response)
    return folder
