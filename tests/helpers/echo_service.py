"""A service without a model: answers at once, by simple rules. What tests of the HTTP API ask."""

from __future__ import annotations

from serve.http.metrics import Metrics
from serve.http.refusals import Refusal
from serve.http.schemas import (
    Asker,
    Examples,
    Explanation,
    LabelInfo,
    ModelInfo,
    Result,
    ScoreInput,
    ScoreResponse,
    Verdict,
)


class Echo:
    """Answers every product with its position; refuses the query `full`, fails at `broken`."""

    model = "echo"
    is_ready = True
    refuses_all: Refusal | None = None

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.models = [self.model_info]

    model_info = ModelInfo(
        id="echo",
        labels=[LabelInfo(code="E", name="Exact", meaning="all of it", gain=1, relevant=True)],
        perspectives=["intent", "rules"],
        verdicts=True,
        explanations=True,
        fields="title",
        max_tokens=9,
    )

    async def score(self, request: ScoreInput, asker: Asker | None = None) -> ScoreResponse:
        if request.query == "full":
            raise Refusal(503, "Overloaded", "try again", "request_timeout_s", 7)
        if request.query == "broken":
            raise RuntimeError("the secret cause")
        near = Explanation(
            perspective="rules", rationale="It fits.", verdict="E", pair_id="p", query="q", title="t", label="E",
            similarity=0.5,
        )  # fmt: skip
        verdict = Verdict(verdict="E", probabilities={"E": 1.0})
        results = [
            Result(
                id=p.id,
                label="E",
                score=1 / (1 + i),
                probabilities={"E": 1.0},
                perspectives={"intent": verdict},
                explanations=[near] if request.explain else None,
            )
            for i, p in enumerate(request.products)
        ]
        return ScoreResponse(model=self.model, results=results)

    def examples(self, query: str, count: int) -> Examples:
        return Examples(queries=[query], titles=[str(count)])

    def ready(self) -> bool:
        return self.is_ready

    def hasty(self) -> Refusal | None:
        return self.refuses_all
