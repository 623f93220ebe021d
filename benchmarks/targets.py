"""Do the targets tell the label? A linear probe on the rationales' embeddings, beside one on query and title.

LRKD pulls a student towards the embeddings of rationales. Where these say nothing of the label that query and title,
read by the same frozen encoder, do not say already, there is nothing to gain. Logistic regression, five folds by query
over the labelled train and test pairs of a finished run; macro-F1 with an interval from resampled queries.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from results import Figure, write_results
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cluster.storage import read_table
from distill.config import TargetSettings
from distill.targets import SentenceEncoder

ENCODER = Path(__file__).parents[1] / "models/all-minilm-l6-v2"
RESAMPLES = 2000
Row = dict[str, Any]


def read(run: Path) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Return the labelled train and test pairs that have every rationale, and the features of each, NxF."""
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


def probe(features: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the label of each pair as a probe says that never saw its query."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    found: np.ndarray = cross_val_predict(model, features, labels, groups=queries, cv=GroupKFold(5))
    return found


def macro_f1(labels: np.ndarray, said: np.ndarray) -> float:
    return float(f1_score(labels, said, average="macro", zero_division=0))


def gain(labels: np.ndarray, said: np.ndarray, base: np.ndarray, queries: np.ndarray) -> tuple[float, float, float]:
    """Return the points of macro-F1 of `said` over `base` with the 95 % interval of a bootstrap over queries."""
    draw = np.random.default_rng(13)
    places = [np.flatnonzero(queries == query) for query in np.unique(queries)]
    found = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([places[i] for i in draw.integers(len(places), size=len(places))])
        found.append(macro_f1(labels[rows], said[rows]) - macro_f1(labels[rows], base[rows]))
    low, high = np.percentile(found, (2.5, 97.5))
    return 100 * (macro_f1(labels, said) - macro_f1(labels, base)), 100 * float(low), 100 * float(high)


def one_run(name: str, run: Path) -> Iterator[Row]:
    """Yield a row per kind of features; gains are over query and title."""
    pairs, features = read(run)
    labels = np.array([pair["label"] for pair in pairs])
    queries = np.array([pair["query_id"] for pair in pairs])
    said = {kind: probe(values, labels, queries) for kind, values in features.items()}
    for kind, one in said.items():
        points, low, high = gain(labels, one, said["query and title"], queries)
        figures = {"accuracy": float(accuracy_score(labels, one)), "macro_f1": macro_f1(labels, one)}
        yield {
            "data": name, "features": kind, "pairs": len(pairs), **figures,
            "gain_points": points, "gain_low": low, "gain_high": high,
        }  # fmt: skip


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN_DIR", help="finished up to 8-targets")
    options = parser.parse_args()
    rows = [row for given in options.runs for row in one_run(*_named(given))]
    figures = []
    for row in rows:
        kind = row["features"].replace(" ", "_")
        figures.append(Figure(f"macro_f1_{kind}_{row['data']}", row["macro_f1"], "of a linear probe", "", None))
        if row["features"] == "both":
            unit = "points, lower end of the gain over query and title"
            low = row["gain_low"]
            figures.append(Figure(f"rationales_add_low_{row['data']}", low, unit, "above 0", low > 0))
    write_results("targets", figures, rows)


def _named(given: str) -> tuple[str, Path]:
    name, _, run = given.partition("=")
    return name, Path(run)


if __name__ == "__main__":
    main()
