"""What was asked of the teacher and answered, shelf by shelf, and the figures of it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.base.errors import UserError
from mpcot.asking.failure_reasons import kind_of
from mpcot.asking.join_answers import Shelf, deal_answers, put_together

ANSWERS, SHELVES = "answers", "shelves"


@dataclass(frozen=True)
class Answers:
    """What was asked and answered: read it shelf by shelf.

    `requested` are all requests, `asked` those of them that this call asked; `hinted` as in the plan; `engine` what
    the engines told, nothing where none was asked.
    """

    folder: Path
    label: str
    most_failed: float
    requested: int
    asked: int
    hinted: bool = False
    engine: dict[str, float] = field(default_factory=dict)

    def shelves(self, again: bool = False) -> Iterator[Shelf]:
        """Yield every request's answer once, sorted by pair, perspective and sample; failed ones have a `reason`.

        Args:
            again: they will be read once more.

        Raises:
            UserError: after the last shelf, when answers are missing or too large a share of them failed: what
                was written from the shelves must not be kept then.
        """
        place = shelves_of(self.folder, self.hinted)
        deal_answers(self.folder / ANSWERS, place / "answers")
        lost, some = 0, list[str]()
        reasons: Counter[str] = Counter()
        for shelf in put_together(place / "requests", place / "answers"):
            lost, some = lost + len(shelf.lost), sorted([*some, *shelf.lost])[:3]
            reasons.update(map(kind_of, shelf.answers["reason"].drop_null().to_pylist()))
            yield shelf
        if lost:
            raise UserError(
                f"{self.label}: {lost} answers are missing, first {', '.join(some)}. Run the command again."
            )
        self._check_failures(reasons)
        if not again:
            shutil.rmtree(place)

    def _check_failures(self, reasons: Counter[str]) -> None:
        share = reasons.total() / self.requested
        if share > self.most_failed:
            raise UserError(f"{self.label}: {too_many_failed(share, self.most_failed, reasons)}")


def shelves_of(folder: Path, hinted: bool) -> Path:
    """Return where requests and answers are put together."""
    return folder / (f"{SHELVES}-hinted" if hinted else SHELVES)


def asked_figures(rounds: Sequence[Answers]) -> dict[str, Any]:
    """Return what all rounds asked, found there and were told by the engines, for the manifest.

    Of the engines: the longest start in seconds, and what share of the prompts' tokens came from the prefix cache.
    """
    asked = sum(answers.asked for answers in rounds)
    figures = {"asked": asked, "reused": sum(answers.requested for answers in rounds) - asked}
    told = [answers.engine for answers in rounds if answers.engine]
    if not told:
        return figures | {"engine": {}}
    prompt, cached = (sum(one[name] for one in told) for name in ("prompt_tokens", "cached_tokens"))
    rate = {"cached_tokens": cached, "prefix_cache_hit_rate": round(cached / max(prompt, 1), 4)}
    return figures | {"engine": {"start_s": max(one["start_s"] for one in told)} | rate}


class TooManyFailed(RuntimeError):
    """So many answers have failed that the stage cannot end well."""


def too_many_failed(share: float, most: float, reasons: Counter[str]) -> str:
    """Return the message about failed answers, with the most frequent reasons."""
    why = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
    return f"{share:.0%} of the answers failed, more than max_failed_share {most:.0%}: {why}."
