"""The folder of a plain model for sequence classification: made, compared with the student, and described."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from cluster.base.stage_folder import read_json, write_json
from distill.config import StudentConfig
from distill.formats.classifier import Classifier, Head, Teaching
from distill.formats.onnx_graph import answers
from distill.formats.pairs import FIXED, Rows, RunPairs
from distill.metrics import label_metrics, ndcg_at

FIGURES, CARD = "parity.json", "README.md"
TAUGHT_BY = ("train", "unlabelled")


def write_classifier(
    export_dir: Path, target: Path, head: Head, run: RunPairs | None, teaching: Teaching, licence: str | None = None
) -> dict[str, Any]:
    """Write the folder; return how its answers compare with the student's, and both with the labels of the test split.

    Args:
        run: the pairs to distil with and to compare on; without them a student that fits exactly is compared on a fixed
            batch.

    Raises:
        UserError: the architecture has no such form, or the student has to be distilled and there are no pairs.
    """
    made = Classifier(export_dir, head)
    made.make(run.of(TAUGHT_BY) if run else [], teaching)
    target.mkdir(parents=True, exist_ok=True)
    made.save(target)
    test = run.of(["test"]) if run else []
    figures = compared(made, test or FIXED, labelled=bool(test)) | {"exact": made.exact, "head": head}
    if not made.exact:
        figures |= {"epochs": teaching.epochs, "distilled_on": len(run.of(TAUGHT_BY)) if run else 0}
    write_json(target / FIGURES, figures)
    base = base_model(export_dir)
    (target / CARD).write_text(card(export_dir.resolve(), made.config, figures, base, licence), encoding="utf-8")
    return figures


def compared(made: Classifier, pairs: Rows, labelled: bool) -> dict[str, Any]:
    """Return how far the model's answers are from the student's and, on labelled pairs, how good both are."""
    found, wanted = made.answer(pairs), answers(made.student, made.tokenizer, pairs)
    gap = np.abs(found["score"] - wanted["score"])
    figures: dict[str, Any] = {
        "pairs": len(pairs),
        "largest_score_difference": float(gap.max()),
        "mean_score_difference": float(gap.mean()),
        "rank_correlation": float(spearmanr(found["score"], wanted["score"]).statistic) if len(pairs) > 2 else None,
    }
    if "probabilities" in found:
        same = found["probabilities"].argmax(1) == wanted["probabilities"].argmax(1)
        figures["labels_kept"] = float(same.mean())
    if labelled:
        figures |= {"student": quality(wanted, pairs, made.config), "model": quality(found, pairs, made.config)}
    return figures


def quality(found: Mapping[str, np.ndarray], pairs: Rows, config: StudentConfig) -> dict[str, Any]:
    """Return NDCG@10 of the scores and, where there are labels, accuracy and macro-F1, against the labels of pairs."""
    gold, queries = [row["label"] for row in pairs], [row["query_id"] for row in pairs]
    gains, score = np.array(config.scheme.gains), found["score"]
    order = np.zeros((len(pairs), len(gains)))  # whose expected gain orders the pairs as the score does
    order[:, gains.argmax()], order[:, gains.argmin()] = score, 1 - score
    figures: dict[str, Any] = {"ndcg_at_10": ndcg_at(gold, order, queries, config.scheme)[0]}
    if "probabilities" in found:
        figures |= label_metrics(gold, [config.scheme.codes[n] for n in found["probabilities"].argmax(1)])
    return figures


def base_model(export_dir: Path) -> str | None:
    """Return the encoder that the run of an export started from, or None where no config says it."""
    config = export_dir.resolve().parent / "config.json"
    return read_json(config).get("student", {}).get("model") if config.is_file() else None


def card(
    export_dir: Path, config: StudentConfig, figures: Mapping[str, Any], base: str | None, licence: str | None
) -> str:
    """Return the folder's README.md."""
    head = "one logit, whose sigmoid is the score from 0 to 1" if figures["head"] == "score" else "one logit per label"
    labels = "\n".join(f"- `{label.code}` {label.name}: {label.meaning}" for label in config.scheme.labels)
    by_score = figures["head"] == "score"
    made = "It was folded into this form without a loss." if figures["exact"] else _distilled(figures)
    started = f"the encoder that it started from (`{base}`)" if base else "the encoder that it started from"
    return f"""---
library_name: transformers
pipeline_tag: text-ranking
license: {licence or "other"}
---
# {export_dir.parent.name}: search relevance as a plain classifier

It judges how well a product fits a search query, with {head}.

`broadfast export` made it from the student `{config.fingerprint[:8] or export_dir.name}`. {made}

Input: a pair of query and {config.fields}, cut to {config.max_tokens} tokens. Take HTML out of products first.

{"The score is the expected gain over these labels:" if by_score else "Labels:"}
{labels}

| {figures["pairs"]} {"test pairs" if "student" in figures else "made-up pairs"} | value |
| --- | --- |
{_rows(figures)}

Licence: {licence or f"that of {started}; look it up before you publish it"}.

```python
from sentence_transformers import CrossEncoder

model = CrossEncoder("THIS_FOLDER")
model.predict([("maple orbit 5 smartphone", "Maple Orbit 5, 128 GB")])
```
"""


def _distilled(figures: Mapping[str, Any]) -> str:
    return (
        f"The student reads more than [CLS], so its answers to {figures['distilled_on']:,} pairs of the run were"
        f" distilled in {figures['epochs']} passes.\nThe table says what that costs."
    )


def _rows(figures: Mapping[str, Any]) -> str:
    names = {
        "mean_score_difference": "score, mean difference from the student's",
        "largest_score_difference": "score, largest difference",
        "rank_correlation": "rank correlation of the scores (Spearman)",
        "labels_kept": "share of labels that are the student's",
    }
    rows = [(title, figures.get(key)) for key, title in names.items()]
    for key, title in (("accuracy", "accuracy"), ("macro_f1", "macro-F1"), ("ndcg_at_10", "NDCG@10")):
        each = [(figures.get(who) or {}).get(key) for who in ("model", "student")]
        rows += [
            (f"{title} of this model", each[0]),
            (f"{title} of the student", each[1] if each[0] is not None else None),
        ]
    return "\n".join(f"| {title} | {value:.4g} |" for title, value in rows if value is not None)
