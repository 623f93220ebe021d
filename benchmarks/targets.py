"""Compares a linear probe of the label on the rationales' embeddings with one on query and title.

LRKD pulls a student towards the embeddings of rationales. If these say nothing about the label that query and title,
read by the same frozen encoder, do not say already, there is nothing to gain. The probe is a logistic regression over
five folds by query of the labelled train and test pairs of a finished run; macro-F1 has an interval from resampled
queries.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from results import Figure, write_results
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cluster.base.stage_folder import read_json
from cluster.base.tables import read_table
from distill.config import TargetSettings
from distill.metrics import label_metrics, paired_bootstrap
from distill.targets.sentence_encoder import SentenceEncoder
from mpcot.schemes.scheme import load_scheme

ENCODER = Path(__file__).parents[1] / "models/all-minilm-l6-v2"
RESAMPLES = 2000
Row = dict[str, Any]


def read(run: Path) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Return the labelled train and test pairs that have all rationales, and their features of each kind, NxF."""
    vectors = {row["pair_id"]: row["vectors"] for row in read_table(run / "8-targets/targets.parquet").to_pylist()}
    votes = {row["pair_id"]: row for row in read_table(run / "7-judgements/judgements.parquet").to_pylist()}
    pairs = [
        pair
        for pair in read_table(run / "1-pairs/pairs.parquet").to_pylist()
        if pair["split"] in ("train", "test") and all(v is not None for v in vectors.get(pair["pair_id"], [None]))
    ]
    encoder = SentenceEncoder(TargetSettings(encoder=str(ENCODER)))
    text = encoder.encode([f"{pair['query']}. {pair['title']}" for pair in pairs])
    rationales = np.array([np.concatenate(vectors[pair["pair_id"]]) for pair in pairs])
    soft = np.array([votes[pair["pair_id"]]["soft"] for pair in pairs])
    both = np.hstack([text, rationales])
    return pairs, {"soft verdict": soft, "query and title": text, "rationales": rationales, "both": both}


def probe(features: np.ndarray, labels: Sequence[str], queries: Sequence[str]) -> list[str]:
    """Return the label that a probe gives to each pair without having seen its query."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    return list(cross_val_predict(model, features, labels, groups=queries, cv=GroupKFold(5)))


def one_run(name: str, run: Path) -> Iterator[Row]:
    """Yield a row for each kind of features; gains are points of macro-F1 over query and title."""
    scheme = load_scheme(read_json(run / "config.json")["labels"]["scheme"])
    pairs, features = read(run)
    labels, queries = ([pair[column] for pair in pairs] for column in ("label", "query_id"))
    said = {kind: probe(values, labels, queries) for kind, values in features.items()}
    for kind, one in said.items():
        gain = paired_bootstrap(labels, said["query and title"], one, queries, scheme, "macro_f1", RESAMPLES, seed=13)
        yield {
            "data": name,
            "features": kind,
            "pairs": len(pairs),
            **label_metrics(labels, one),
            "gain_points": 100 * gain["difference"],
            "gain_low": 100 * gain["low"],
            "gain_high": 100 * gain["high"],
        }


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN_DIR", help="finished up to 8-targets")
    options = parser.parse_args()
    rows = [
        row for name, _, run in (given.partition("=") for given in options.runs) for row in one_run(name, Path(run))
    ]
    figures = []
    for row in rows:
        kind = row["features"].replace(" ", "_")
        figures.append(Figure(f"macro_f1_{kind}_{row['data']}", row["macro_f1"], "of a linear probe"))
        if row["features"] == "both":
            unit = "points, lower end of the gain over query and title"
            figures.append(Figure(f"rationales_add_low_{row['data']}", row["gain_low"], unit, above=0))
    write_results("targets", figures, rows)


if __name__ == "__main__":
    main()
