"""Computes the numbers that `inspect` shows about the answers of a stage, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mpcot.asking.failure_reasons import kind_of
from mpcot.filters.config import GroundedFilter
from mpcot.filters.grounded import grounded
from mpcot.inspect.read_answers import OUTCOMES

BINS = 24
MOST_REASONS = 12


def counts(answers: pd.DataFrame) -> dict[str, int]:
    """Return the number of answers by outcome, of pairs, of pairs with gold labels and of these with kept answers."""
    by_outcome = answers["outcome"].value_counts()
    gold = answers[answers["label"].notna()]
    return {
        "asked": len(answers),
        **{outcome: int(by_outcome.get(outcome, 0)) for outcome in OUTCOMES},
        "pairs": answers["pair_id"].nunique(),
        "gold_pairs": gold["pair_id"].nunique(),
        "covered_pairs": gold.loc[gold["outcome"] == "kept", "pair_id"].nunique(),
    }


def kept_rates(answers: pd.DataFrame, perspectives: Sequence[str], codes: Sequence[str]) -> list[dict[str, Any]]:
    """Return kept and asked answers per gold label and perspective; "all" stands for a whole row or column."""
    cells = []
    for code in (*codes, "all"):
        row = answers[answers["label"].notna() if code == "all" else answers["label"] == code]
        for name in (*perspectives, "all"):
            kept = row.loc[(row["perspective"] == name) | (name == "all"), "outcome"] == "kept"
            cells.append({"label": code, "perspective": name, "kept": int(kept.sum()), "asked": len(kept)})
    return cells


def confusion(answers: pd.DataFrame, codes: Sequence[str]) -> dict[str, list[int]]:
    """Return the number of answers by verdict for each gold label, those without a verdict last."""
    table = pd.crosstab(answers["label"], answers["verdict"].fillna(""))
    table = table.reindex(index=list(codes), columns=[*codes, ""], fill_value=0)
    return {code: table.loc[code].tolist() for code in codes}


def verdict_accuracy(answers: pd.DataFrame, perspectives: Sequence[str]) -> dict[str, Any]:
    """Return the share of right verdicts, by perspective and in all, and the most frequent label and verdict."""
    given = answers[answers["verdict"].notna() & answers["label"].notna()]
    right = given["verdict"] == given["label"]
    labels = answers.drop_duplicates("pair_id")["label"].value_counts(normalize=True)
    verdicts = given["verdict"].value_counts(normalize=True)
    return {
        "all": _mean(right),
        "perspectives": {name: _mean(right[given["perspective"] == name]) for name in perspectives},
        "majority": _top(labels),
        "verdict": _top(verdicts),
    }


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _top(shares: pd.Series) -> dict[str, Any] | None:
    return {"label": str(shares.index[0]), "share": float(shares.iloc[0])} if len(shares) else None


def agreement(answers: pd.DataFrame, perspectives: Sequence[str], codes: Sequence[str]) -> dict[str, Any]:
    """Return how often two perspectives give the same verdict, as a mean over the pairs that both have judged.

    With several samples it is the chance that an answer of one perspective and an answer of the other agree. The
    diagonal compares different samples of one perspective, and is None if there is only one sample.
    """
    given = answers[answers["verdict"].isin(codes)]
    pair, ids = pd.factorize(given["pair_id"])
    place = pd.Categorical(given["perspective"], categories=list(perspectives)).codes
    verdict = pd.Categorical(given["verdict"], categories=list(codes)).codes
    votes = np.zeros((len(ids), len(perspectives), len(codes)), dtype=np.int32)  # pairs x perspectives x labels
    np.add.at(votes, (pair, place, verdict), 1)
    totals = votes.sum(axis=2)
    matrix = [[_agreeing(votes, totals, a, b) for b in range(len(perspectives))] for a in range(len(perspectives))]
    judged = (totals > 0).sum(axis=1) > 1
    together = votes.sum(axis=1)[judged]
    unanimous = (together.max(axis=1) == together.sum(axis=1)) if len(together) else []
    conflicts = int(judged.sum() - np.sum(unanimous))
    return {"matrix": matrix, "pairs": int(judged.sum()), "unanimous": _mean(unanimous), "conflicts": conflicts}


def _agreeing(votes: np.ndarray, totals: np.ndarray, a: int, b: int) -> float | None:
    ways = totals[:, a] * (totals[:, b] - (a == b))
    same = (votes[:, a] * (votes[:, b] - (a == b))).sum(axis=1)
    return _mean(same[ways > 0] / ways[ways > 0])


def lengths(answers: pd.DataFrame, perspectives: Sequence[str]) -> dict[str, Any]:
    """Return quantiles and a histogram of the characters of rationales with a verdict, per perspective."""
    chars = answers.loc[answers["verdict"].notna() & answers["chars"].notna(), ["perspective", "chars"]]
    if not len(chars):
        return {"edges": [], "perspectives": {}}
    edges = np.histogram_bin_edges(chars["chars"].astype(float), bins=BINS)
    found = {}
    for name in perspectives:
        own = chars.loc[chars["perspective"] == name, "chars"].to_numpy(dtype=float)
        if len(own):
            marks = np.quantile(own, [0, 0.05, 0.5, 0.95, 1]).round().astype(int).tolist()
            bars = np.histogram(own, bins=edges)[0].tolist()
            found[name] = {"quantiles": marks, "bars": bars, "answers": len(own)}
    return {"edges": edges.tolist(), "perspectives": found}


def reasons(answers: pd.DataFrame, outcome: str) -> dict[str, int]:
    """Return why answers were not kept, the most frequent reason first. Rare reasons are one entry together."""
    ranked = answers.loc[answers["outcome"] == outcome, "reason"].map(kind_of).value_counts()
    shown = {str(reason): int(n) for reason, n in ranked.iloc[:MOST_REASONS].items()}
    rest = int(ranked.iloc[MOST_REASONS:].sum())
    return shown | ({f"{len(ranked) - MOST_REASONS} other reasons": rest} if rest else {})


def ungrounded(texts: Iterable[Mapping[str, Any]], known: Mapping[str, str]) -> dict[str, int]:
    """Return how many rationales were looked at, and how many name what neither query nor product has.

    Args:
        texts: answers with `pair_id` and `rationale`.
        known: all that is known of query and product, by pair id.
    """
    look = grounded(GroundedFilter())
    said = [look(row["rationale"], known[row["pair_id"]]) for row in texts if row["rationale"] and row["verdict"]]
    return {"looked_at": len(said), "ungrounded": sum(found is not None for found in said)}


def hinted(answers: pd.DataFrame) -> dict[str, int] | None:
    """Return how many answers to prompts with a hint there are and were kept, or None without such prompts."""
    own = answers[answers["hinted"].astype(bool)]
    if not len(own):
        return None
    return {"pairs": own["pair_id"].nunique(), "asked": len(own), "kept": int((own["outcome"] == "kept").sum())}
