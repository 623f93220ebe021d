"""What an export says of its dev split: how the student's scores, labels and texts are distributed there.

The service counts the same of the pairs that it answers, so that one can see whether they still resemble those that the
student was tested on.

Shapes: N pairs, C labels, B bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError, model_validator
from transformers import PreTrainedTokenizerBase

from cluster.base.errors import UserError
from cluster.base.stage_folder import read_json, write_json
from cluster.config import Settings
from distill.config import StudentConfig
from distill.student.inputs import encode_pairs
from distill.student.model import load_tokenizer
from mpcot.schemes.scheme import Scheme

REFERENCE = "reference.json"
SCORE, LABEL, LENGTH, UNKNOWN = "score", "label", "length", "unknown_tokens"
SCORE_EDGES = tuple(n / 10 for n in range(1, 10))
UNKNOWN_EDGES = (1e-9, 0.02, 0.05, 0.1, 0.2)  # the first bin holds the pairs without any
LENGTH_BINS = 10
AT_A_TIME = 256  # pairs that are tokenised together


class Histogram(Settings):
    """How many pairs lie in each of B bins: bin n holds the values from edge n-1, included, to edge n.

    The first and the last bin are open, so there is an edge less than there are bins.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @model_validator(mode="after")
    def _check(self) -> Histogram:
        if len(self.counts) != len(self.edges) + 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"{len(self.counts)} counts need one edge less, in rising order, not {self.edges}")
        return self


class Reference(Settings):
    """The histograms of an export's dev split, by quantity.

    `score` is what results are sorted by, `label` the number of the label, `length` the tokens of query and product and
    `unknown_tokens` the share of those that the tokenizer does not know, where it has such a token.
    """

    pairs: int
    histograms: dict[str, Histogram]


def histogram(edges: Sequence[float] | np.ndarray, values: np.ndarray) -> np.ndarray:
    """Count N values by bin, B."""
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)


def quantities(
    probabilities: np.ndarray, lengths: np.ndarray, unknown: np.ndarray | None, scheme: Scheme
) -> dict[str, np.ndarray]:
    """Return the N values of each quantity.

    Args:
        probabilities: NxC, as they are served.
        lengths: tokens of each pair with special ones, N.
        unknown: how many of those the tokenizer does not know, N; None where it has no token for what it does not know.
    """
    found = {SCORE: probabilities @ np.array(scheme.unit_gains), LABEL: probabilities.argmax(1), LENGTH: lengths}
    return found if unknown is None else found | {UNKNOWN: unknown / lengths}


def reference_of(values: Mapping[str, np.ndarray], scheme: Scheme) -> Reference:
    """Return the histograms of the dev split. The bins of lengths hold about equally many of its pairs."""
    deciles = np.quantile(values[LENGTH], np.arange(1, LENGTH_BINS) / LENGTH_BINS, method="higher")
    edges: dict[str, Sequence[float]] = {
        SCORE: SCORE_EDGES,
        LABEL: range(1, len(scheme.codes)),
        LENGTH: np.unique(deciles).tolist(),
        UNKNOWN: UNKNOWN_EDGES,
    }
    found = {
        name: Histogram(edges=tuple(edges[name]), counts=tuple(histogram(edges[name], each).tolist()))
        for name, each in values.items()
    }
    return Reference(pairs=len(values[LENGTH]), histograms=found)


def write_reference(
    export: Path, config: StudentConfig, pairs: Iterable[Mapping[str, Any]], served: Mapping[str, Sequence[float]]
) -> int:
    """Write the export's reference and return how many pairs it is made of; without any, write none.

    Args:
        pairs: rows of pairs, of which some at a time are in memory.
        served: the probabilities that the export serves of the dev pairs, by the pair's id; other pairs are left out.
    """
    tokenizer = load_tokenizer(export)
    probabilities: list[Sequence[float]] = []
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    dev = (row for row in pairs if row["pair_id"] in served)
    while rows := list(islice(dev, AT_A_TIME)):
        probabilities += [served[row["pair_id"]] for row in rows]
        parts.append(token_counts(tokenizer, rows, config))
    if not parts:
        return 0
    lengths, unknown = (np.concatenate(part) for part in zip(*parts, strict=True))
    known = unknown if tokenizer.unk_token_id is not None else None
    values = quantities(np.array(probabilities), lengths, known, config.scheme)
    write_json(export / REFERENCE, reference_of(values, config.scheme).model_dump(mode="json"))
    return len(lengths)


def token_counts(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Mapping[str, Any]], config: StudentConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many tokens each pair has, and how many of them are unknown, both N."""
    batch = encode_pairs(tokenizer, pairs, config.max_tokens, config.fields)
    ids, lengths = batch["input_ids"].numpy(), batch["attention_mask"].sum(1).numpy()
    return lengths, (ids == tokenizer.unk_token_id).sum(1)


def read_reference(export: Path) -> Reference | None:
    """Return the export's reference; None for an export of an earlier version or one without dev pairs.

    Raises:
        UserError: the file is damaged.
    """
    if not (export / REFERENCE).is_file():
        return None
    try:
        return Reference(**read_json(export / REFERENCE))
    except (TypeError, ValidationError) as error:
        raise UserError(f"{export / REFERENCE} is damaged. Export again, or delete it to serve without.") from error
