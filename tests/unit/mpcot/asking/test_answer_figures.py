"""What a generation says of its engines: added up over batches and over both rounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from mpcot.asking.answers import Answers, asked_figures
from mpcot.asking.failure_reasons import kind_of, too_long
from mpcot.asking.generate import _told
from mpcot.inspect import figures


def test_what_the_engines_told_is_added_up() -> None:
    told = [
        {
            "engine_start_s": np.array([2.0, 2.0]),
            "prompt_tokens": np.array([100, 60]),
            "cached_tokens": np.array([0, 30]),
        },
        {"engine_start_s": np.array([5.5]), "prompt_tokens": np.array([40]), "cached_tokens": np.array([20])},
    ]
    assert _told(told) == {"start_s": 5.5, "prompt_tokens": 200, "cached_tokens": 50}
    assert _told([]) == {"start_s": 0.0, "prompt_tokens": 0, "cached_tokens": 0}


def test_the_figures_are_those_of_both_rounds(tmp_path: Path) -> None:
    first = Answers(
        tmp_path, "rationales", 0.2, 20, 15, False, {"start_s": 5.5, "prompt_tokens": 150, "cached_tokens": 20}
    )
    hinted = Answers(tmp_path, "a hint", 0.2, 6, 6, True, {"start_s": 7.0, "prompt_tokens": 50, "cached_tokens": 30})
    both = {"start_s": 7.0, "cached_tokens": 50, "prefix_cache_hit_rate": 0.25}
    assert asked_figures([first, hinted]) == {"asked": 21, "reused": 5, "engine": both}
    reused = replace(first, asked=0, engine={})
    assert asked_figures([reused]) == {"asked": 0, "reused": 20, "engine": {}}
    assert asked_figures([reused, hinted])["engine"]["prefix_cache_hit_rate"] == 0.6


def test_reasons_are_counted_without_what_is_of_one_request_alone() -> None:
    reasons = [too_long(n, 1536, False) for n in (1600, 1601)] + ["engine error: OSError: gone", "form: markup"]
    assert [kind_of(reason) for reason in reasons] == ["prompt too long"] * 2 + ["engine error", "form: markup"]
    answers = pd.DataFrame({"outcome": ["failed"] * 3 + ["filtered"], "reason": reasons})
    assert figures.reasons(answers, "failed") == {"prompt too long": 2, "engine error": 1}
