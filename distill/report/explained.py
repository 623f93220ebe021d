"""The report's part on explanations: what the exported student and its index say about the test pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cluster.base.stage_folder import StageFolder
from cluster.models.folders import model_to_load
from distill.config import EncoderWorkers, StudentConfig
from distill.report.config import ReportStage
from distill.report.explanation_quality import UNKNOWN, Cases, explanation_quality
from distill.student.model import Student, load_tokenizer
from distill.student.predict import Predictions, predict
from distill.student.rationale_index import RationaleIndex
from distill.targets.sentence_encoder import SentenceEncoder
from mpcot.details import details
from mpcot.filters.config import GroundedFilter
from mpcot.filters.grounded import grounded
from mpcot.schemes.scheme import Scheme, load_scheme

Rows = Sequence[Mapping[str, Any]]
MOST_PAIRS, MOST_INDEXED = 1000, 5000  # test pairs and training rationales; more would only take time


def explained(
    config: ReportStage, folder: StageFolder, pairs: Rows, judged: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Return the figures of `explanation_quality` on test; None without an index or a judged test pair."""
    export, scheme = folder.input("10-export"), load_scheme(config.labels.scheme)
    index = RationaleIndex.load(export, config.perspectives.names)
    rows = [row for row in pairs if row["pair_id"] in judged][:MOST_PAIRS]
    if index is None or not rows:
        return None
    known: Rows = index.rows.slice(0, MOST_INDEXED).to_pylist()
    student = Student.load(export)
    found = predict(student, load_tokenizer(export), rows)
    assert found.latents is not None, "a student with an index has latents"
    # In this process, with the devices and threads that it has.
    here = EncoderWorkers(cpus_per_worker=torch.get_num_threads(), gpus_per_worker=1)
    encoder = model_to_load("targets.encoder", config.targets.encoder)
    settings = config.targets.model_copy(update={"encoder": encoder, "workers": here})
    texts = SentenceEncoder(settings).encode([f"{row['query']} {row['title']}" for row in [*known, *rows]])
    train = _cases(known, known, index.vectors[:, : len(known)].transpose(1, 0, 2), texts[: len(known)], scheme)
    test = _cases(rows, [judged[row["pair_id"]] for row in rows], found.latents, texts[len(known) :], scheme)
    objection = grounded(GroundedFilter())

    def true_of(place: int, row: int, perspective: int) -> bool:
        pair = rows[row]
        text = f"{pair['query']} {pair['title']} {pair['brand'] or ''} {details(pair)}"
        return objection(known[place]["rationales"][perspective], text) is None

    verdicts, labels = _answers(found, student.config)
    queries = np.array([row["query_id"] for row in rows])
    figures = explanation_quality(
        train, test, verdicts, labels, queries, true_of, config.report.bootstrap_resamples, config.seed
    )
    return figures | {"conclusion": conclusion(figures)} if figures["pairs"] else None


def conclusion(figures: Mapping[str, Any]) -> str:
    """Return in words how good the explanations are."""
    gain, low, high = (figures[f"explanation_gain_points{end}"] for end in ("", "_low", "_high"))
    verdict = "is not told apart from that of"
    if low > 0:
        verdict = "is better than"
    elif high < 0:
        verdict = "is worse than"
    share = 100 * figures["explanation_agreement"]
    return (
        f"The rationale that the student shows argues for the teacher's verdict on the pair in {share:.1f} % of the "
        f"cases. That {verdict} the nearest rationale by query and title: {gain:+.1f} points, 95 % interval {low:+.1f} "
        f"to {high:+.1f}."
    )


def _answers(found: Predictions, config: StudentConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return verdicts BxP and labels B as they are served. Without heads of the perspectives the labels are both."""
    labels = found.served(config).argmax(-1)
    if found.perspective_logits is None:
        return np.repeat(labels[:, None], len(config.perspectives), 1), labels
    return found.perspective_logits.argmax(-1), labels


def _cases(pairs: Rows, said: Rows, latents: np.ndarray, texts: np.ndarray, scheme: Scheme) -> Cases:
    """Return pairs with what the teacher said of each, as arrays; a verdict without a rationale does not count."""

    def number(code: str | None) -> int:
        return UNKNOWN if code is None else scheme.index(code)

    verdicts = [
        [number(v) if text else UNKNOWN for v, text in zip(row["verdicts"], row["rationales"], strict=True)]
        for row in said
    ]
    labels = [number(row["label"]) for row in pairs]
    return Cases(np.asarray(latents, np.float32), texts, np.array(verdicts), np.array(labels))
