"""The answers of a generation, read some pairs at a time, and the figures about them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.base.errors import UserError
from mpcot.asking.failure_reasons import kind_of
from mpcot.asking.join_answers import AnsweredPairs, join_by_pair

ANSWERS, JOINED, ASKED = "answers", "joined", "asked.parquet"
OF_BATCH = "batch-"  # how the names of parts begin that hold answers of an offline batch
ENOUGH_ASKED = 500
USAGE = ("prompt_tokens", "cached_tokens", "output_tokens")


@dataclass(frozen=True)
class Answers:
    """The answers of one generation.

    Attributes:
        most_failed: the largest share of the requests that may fail.
        requested: number of requests.
        asked: number of requests that this run had to ask; the others had been answered before.
        hinted: whether the prompts gave the gold label away.
        engine: what the engines reported; empty if nothing had to be asked.
        usage: the billed tokens of all answers of the stage, and their cost.
    """

    folder: Path
    label: str
    most_failed: float
    requested: int
    asked: int
    hinted: bool = False
    engine: dict[str, float] = field(default_factory=dict)
    usage: dict[str, float] = field(default_factory=dict)

    def by_pair(self, again: bool = False) -> Iterator[AnsweredPairs]:
        """Yield the answer to every request once, sorted by pair, perspective and sample. Failed ones have a `reason`.

        Args:
            again: whether they will be read once more.

        Raises:
            UserError: at the end, if answers are missing or too many of them failed. What was written on the way
                must not be kept then.
        """
        place = joined_folder(self.folder, self.hinted)
        lost, some = 0, list[str]()
        reasons: Counter[str] = Counter()
        for joined in join_by_pair(place / ASKED, self.folder / ANSWERS):
            lost, some = lost + len(joined.lost), sorted([*some, *joined.lost])[:3]
            reasons.update(map(kind_of, joined.answers["reason"].drop_null().to_pylist()))
            yield joined
        if lost:
            raise UserError(f"{self.label}: {lost} answers are missing, first {', '.join(some)}. Run it again.")
        share = reasons.total() / self.requested
        if share > self.most_failed:
            raise UserError(f"{self.label}: {too_many_failed(share, self.most_failed, reasons)}")
        if not again:
            shutil.rmtree(place)


def joined_folder(folder: Path, hinted: bool) -> Path:
    """Return the folder in which requests and answers are joined."""
    return folder / (f"{JOINED}-hinted" if hinted else JOINED)


def asked_figures(rounds: Sequence[Answers]) -> dict[str, Any]:
    """Return the figures of all rounds for the manifest: how many requests were asked and how many answers reused.

    About the engines: the longest start in seconds, and the share of prompt tokens that the prefix cache had.
    """
    asked = sum(answers.asked for answers in rounds)
    figures: dict[str, Any] = {"asked": asked, "reused": sum(answers.requested for answers in rounds) - asked}
    if rounds and rounds[-1].usage:
        figures["usage"] = rounds[-1].usage  # of all rounds: they share the parts
    told = [answers.engine for answers in rounds if answers.engine]
    if not told:
        return figures | {"engine": {}}
    prompt, cached = (sum(one[name] for one in told) for name in ("prompt_tokens", "cached_tokens"))
    rate = {"cached_tokens": cached, "prefix_cache_hit_rate": round(cached / max(prompt, 1), 4)}
    return figures | {"engine": {"start_s": max(one["start_s"] for one in told)} | rate}


class TooManyFailed(RuntimeError):
    """Too many answers have failed already, whatever comes, or too many for the others to make up for."""


def least_share(failed: int, asked: int) -> float:
    """Return the least share of failures that the first requests prove for all, 0 while there are too few of them.

    It is the lower bound of Wilson's score interval (1927, Journal of the American Statistical Association 22,
    209-212), which the true share is below with a probability of 0.1 %.
    """
    from scipy.stats import binomtest

    if asked < ENOUGH_ASKED:
        return 0.0
    return float(binomtest(failed, asked, alternative="greater").proportion_ci(0.999, "wilson").low)


def too_many_failed(share: float, most: float, reasons: Counter[str], first: int | None = None) -> str:
    """Return the message about failed answers, with the most frequent reasons.

    Args:
        first: how many requests the share is of, if the others are not waited for.
    """
    why = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
    asked = "answers" if first is None else f"first {first:,} requests"
    said = f"{share:.0%} of the {asked} failed, more than max_failed_share {most:.0%}: {why}."
    return said if first is None else f"{said} What was answered is kept. Mend the cause, or raise max_failed_share."
