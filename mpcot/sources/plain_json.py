"""Reads JSON that a stranger wrote, so that no number and no nesting in it stops a run."""

from __future__ import annotations

import json
from typing import Any

MOST_LEVELS = 100  # of lists and objects inside each other; what reads a value calls itself once per level


def load_json(text: str) -> Any:
    """Return what `text` says.

    Raises:
        ValueError: it is not JSON, has a number of thousands of digits, or is nested deeper than `MOST_LEVELS`.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MOST_LEVELS} levels") from error
    except ValueError as error:  # Python refuses to read integers of more than 4,300 digits
        raise ValueError("a number has thousands of digits") from error
    if text.count("[") + text.count("{") > MOST_LEVELS and _deeper(value, MOST_LEVELS):
        raise ValueError(f"nested deeper than {MOST_LEVELS} levels")
    return value


def _deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [one for one in layer if isinstance(one, dict | list)]
        layer = [inside for one in layer for inside in (one.values() if isinstance(one, dict) else one)]
    return any(isinstance(one, dict | list) for one in layer)
