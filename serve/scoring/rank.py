"""A student in Python: it is loaded from an export folder, and ranks products for a query. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.base.errors import UserError
from cluster.base.processor import cores
from serve.config import ServeSettings
from serve.http.schemas import ProductInput, Result, ScoreInput
from serve.scoring.scorer import Scorer, load_proven

Product = str | Mapping[str, Any]


@dataclass(frozen=True)
class Ranked:
    """A product's place in a ranking.

    Attributes:
        product: as it was given.
        index: its position among the products given.
        score: 0 to 1, by which products are ranked.
        verdicts: the label that each perspective would give; empty for a student without verdict heads.
        result: all that `/v1/score` says of the product.
    """

    product: Product
    index: int
    label: str
    score: float
    probabilities: Mapping[str, float]
    verdicts: Mapping[str, str]
    result: Result


class Student:
    """A student of an export folder. Several threads must not use it at once."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    @classmethod
    def load(
        cls, folder: str | Path, *, threads: int | None = None, precision: Literal["auto", "fp32", "bf16"] = "auto",
        gpu: bool = False,
    ) -> Student:  # fmt: skip
        """Load an export folder, such as RUN_DIR/10-export, and try it on one pair.

        Args:
            threads: of PyTorch in this process; by default as many as there are cores.

        Raises:
            UserError: the folder is not an export, it is damaged, or there is no GPU.
        """
        settings = ServeSettings(
            threads=threads or len(cores()), precision=precision, gpus_per_replica=1.0 if gpu else 0.0
        )
        return cls(load_proven(Path(folder), settings))

    def rank(self, query: str, products: Iterable[Product], *, explain: bool = False) -> list[Ranked]:
        """Return all products, the best first; equal scores keep their order.

        Args:
            products: titles, or mappings with a `title` and whatever else `/v1/score` takes of a product.
            explain: add the nearest rationales to each `result`, where the export has an index.

        Raises:
            ValueError: the query or a title is blank, or a product has a field that is unknown; it is named.
            UserError: the export has no index to explain with.
            ArithmeticError: the student's scores are not numbers.
        """
        given = list(products)
        if not given:
            return []
        if explain and self.scorer.explainer is None:
            raise UserError(f"{self.scorer.name} cannot explain: its export has no index (export.index_pairs)")
        asked = ScoreInput(query=query, products=[_product(n, one) for n, one in enumerate(given)], explain=explain)
        (results,) = self.scorer.answer([asked])
        if isinstance(results, ArithmeticError):
            raise results
        found = [_ranked(one, n, result) for n, (one, result) in enumerate(zip(given, results, strict=True))]
        return sorted(found, key=lambda one: -one.score)


def _product(n: int, given: Product) -> ProductInput:
    if isinstance(given, str):
        return ProductInput(id=str(n), title=given)
    return ProductInput(**{**given, "id": str(given.get("id", n))})


def _ranked(product: Product, index: int, result: Result) -> Ranked:
    verdicts = {name: found.verdict for name, found in result.perspectives.items()}
    return Ranked(product, index, result.label, result.score, result.probabilities, verdicts, result)
