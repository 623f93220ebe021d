"""Saying what is waited for while nothing moves, and how long the same took last time on this machine."""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cluster.base.errors import UserError
from cluster.base.whole_files import whole_file


def remembered() -> Path:
    """Return the file that keeps how long starts took, in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if cache.startswith("~"):  # a user without a home, as in some containers
        cache = tempfile.gettempdir()
    return Path(cache) / "broadfast" / "start_seconds.json"


def _seconds() -> dict[str, float]:
    try:
        return dict(json.loads(remembered().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # never written, or by another hand
        return {}


@dataclass
class Waiting:
    """One wait for something that starts, such as an engine."""

    what: str
    began: float = field(init=False)
    last_s: float | None = field(init=False)

    def __post_init__(self) -> None:
        self.began, self.last_s = time.monotonic(), _seconds().get(self.what)

    def text(self) -> str:
        """Return what is waited for, for how long so far, and how long it took last time where that is known."""
        last = "" if self.last_s is None else f" (last time {self.last_s:.0f} s)"
        return f"waiting for {self.what}, {time.monotonic() - self.began:.0f} s{last}"

    def over(self) -> None:
        """Remember how long it took; a cache folder that cannot be written is no reason to stop."""
        took = {self.what: round(time.monotonic() - self.began, 1)}
        with suppress(UserError), whole_file(remembered()) as partial:
            partial.write_text(json.dumps(_seconds() | took, indent=1), encoding="utf-8")
