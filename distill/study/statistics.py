"""How far two rows differ, and how sure that is when both the queries and the seeds might have been others.

Shapes: N pairs, Q queries, C labels, S seeds, B resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from distill.metrics import interval, metric_of_tables
from distill.study.config import Figure
from distill.study.decisions import weighed_labels
from mpcot.schemes.scheme import Scheme

METRICS: tuple[Figure, ...] = get_args(Figure)  # in the order in which they are told
AT_ONCE = 500  # resamples that are held as BxN numbers
SURE = 0.05


@dataclass(frozen=True)
class Gold:
    """The pairs that all rows judge: `gold` label numbers (N), the numbers of their queries (N), the scheme."""

    gold: np.ndarray
    query: np.ndarray
    scheme: Scheme

    @classmethod
    def of(cls, gold: Sequence[str], queries: Sequence[Any], scheme: Scheme) -> Gold:
        """Number labels and queries."""
        numbers = np.unique(np.asarray(queries), return_inverse=True)[1]
        return cls(np.array([scheme.index(code) for code in gold], int), numbers, scheme)

    def draws(self, samples: int, seed: int) -> Iterator[np.ndarray]:
        """Yield how often each pair is drawn when whole queries are drawn with replacement, BxN, in several parts."""
        draw, queries = np.random.default_rng(seed), int(self.query.max()) + 1
        for start in range(0, samples, AT_ONCE):
            size = min(AT_ONCE, samples - start)
            yield draw.multinomial(queries, np.full(queries, 1 / queries), size=size).astype(float)[:, self.query]


@dataclass(frozen=True)
class Scores:
    """A row's figures by metric: `whole`, one of each seed (S), and `resampled`, of each seed and resample (SxB)."""

    seeds: tuple[int, ...]
    whole: Mapping[str, np.ndarray]
    resampled: Mapping[str, np.ndarray]


def scores(
    tested: Gold, by_seed: Mapping[int, np.ndarray], samples: int, seed: int, fold: np.ndarray | None = None
) -> Scores:
    """Return a row's figures on the pairs, and on resamples of their queries that all rows share.

    Args:
        by_seed: the row's probabilities NxC by seed.
        fold: which fold tests each pair (N); without two of them nothing is said of weighed labels.
    """
    once = np.ones((1, len(tested.gold)))
    several = fold is not None and len(np.unique(fold)) > 1
    weighed = [weighed_labels(tested.gold, own, fold) if several else None for own in by_seed.values()]  # type: ignore[arg-type]
    whole = [figures_of(tested, own, once, said) for own, said in zip(by_seed.values(), weighed, strict=True)]
    drawn: list[list[dict[str, np.ndarray]]] = [[] for _ in by_seed]
    for weights in tested.draws(samples, seed):
        for found, own, said in zip(drawn, by_seed.values(), weighed, strict=True):
            found.append(figures_of(tested, own, weights, said))
    return Scores(
        tuple(by_seed),
        {m: np.array([one[m][0] for one in whole]) for m in METRICS},
        {m: np.array([np.concatenate([part[m] for part in parts]) for parts in drawn]) for m in METRICS},
    )


def figures_of(
    tested: Gold, probabilities: np.ndarray, weights: np.ndarray, weighed: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return log-loss in nats, AUC of relevant against not, macro-F1 (of weighed labels too) and accuracy, each B.

    Macro-F1 is the mean over the labels that are gold, so that all rows share its denominator. AUC is not a number
    where all drawn pairs are relevant, or none.

    Args:
        probabilities: NxC.
        weights: how often each pair counts, BxN.
        weighed: the numbers of the labels that are said where macro-F1 counts (N); without them its figure is no
            number.
    """
    gold, labels = tested.gold, probabilities.shape[1]
    here, count = np.arange(len(gold)), weights.sum(1)

    def tables_of(said: np.ndarray) -> np.ndarray:
        """Return the confusion tables, BxCxC."""
        cells = np.zeros((len(gold), labels * labels))
        cells[here, gold * labels + said] = 1
        return (weights @ cells).reshape(-1, labels, labels)

    tables = tables_of(probabilities.argmax(1))
    relevant = np.array([label.relevant for label in tested.scheme.labels])
    return {
        "log_loss": weights @ -np.log(probabilities[here, gold]) / count,
        "auc": weighted_auc(relevant[gold], probabilities[:, relevant].sum(1), weights),
        "macro_f1": metric_of_tables(tables, "macro_f1"),
        "macro_f1_weighed": np.full(len(weights), np.nan)
        if weighed is None
        else metric_of_tables(tables_of(weighed), "macro_f1"),
        "accuracy": metric_of_tables(tables, "accuracy"),
    }


def weighted_auc(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return for each resample the share of (relevant, not) pairs in the right order, ties counting half.

    The Mann-Whitney form of the area under the ROC curve; Hanley and McNeil 1982.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(np.round(score[order], 9), prepend=-1.0))
    drawn = weights[:, order]
    yes, no = (np.add.reduceat(drawn * side[order], starts, axis=1) for side in (truth, ~truth))
    below = np.cumsum(no, axis=1) - no
    pairs = yes.sum(1) * no.sum(1)
    right = (yes * (below + no / 2)).sum(1)
    return np.divide(right, pairs, out=np.full(len(right), np.nan), where=pairs > 0)


def gain(first: Scores, second: Scores, metric: str, seed: int) -> tuple[float, np.ndarray]:
    """Return how much better `second` is than `first`: as measured, and on B resamples of queries and seeds.

    Queries and seeds are crossed, since every seed answers every query. Both are resampled independently of each other,
    as in the pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1(2)). A seed is the same in both rows.
    Lower log-loss is better, so its difference is turned round.
    """
    seeds = [own for own in first.seeds if own in second.seeds]
    assert seeds, "the rows have no seed in common"
    places = [[row.seeds.index(own) for own in seeds] for row in (first, second)]
    sign = -1 if metric == "log_loss" else 1
    before, after = (row.whole[metric][at] for row, at in zip((first, second), places, strict=True))
    drawn = second.resampled[metric][places[1]] - first.resampled[metric][places[0]]  # SxB
    size = drawn.shape[1]
    share = np.random.default_rng([seed, len(seeds)]).multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size)
    return sign * float(np.mean(after - before)), sign * (share.T / len(seeds) * drawn).sum(0)


def judged(found: tuple[float, np.ndarray], margin: float) -> dict[str, Any] | None:
    """Return what a gain and its resamples say, or None where the figure is undefined.

    Returns: `difference` with `low` and `high` (95 %), `p` (two-sided, the level at which the percentile interval
        reaches 0), `bound` (by two one-sided tests at 5 % the rows differ by less; Schuirmann 1987) and `equal`:
        whether that is within the margin.
    """
    whole, drawn = found
    known = drawn[~np.isnan(drawn)]
    if np.isnan(whole) or not len(known):
        return None
    least = min((known <= 0).sum(), (known >= 0).sum())
    bound = float(np.abs(np.quantile(known, [SURE, 1 - SURE])).max())
    return {
        **interval(whole, known),
        "p": float(min(1.0, 2 * (1 + least) / (1 + len(known)))),
        "bound": bound,
        "equal": bound < margin,
    }


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down procedure (Holm 1979)."""
    order = np.argsort(values, kind="stable")
    steps = np.arange(len(values), 0, -1)
    raised = np.minimum(1.0, np.maximum.accumulate(np.asarray(values, float)[order] * steps))
    found = np.empty(len(values))
    found[order] = raised
    return [float(value) for value in found]
