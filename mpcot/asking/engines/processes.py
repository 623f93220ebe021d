"""The processes of an engine: a tensor-parallel one has its workers as grandchildren of the process that asks it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import psutil


def descendants() -> list[psutil.Process]:
    """Return all processes that descend from this one."""
    return psutil.Process().children(recursive=True)


def kill_all(started: Iterable[psutil.Process]) -> None:
    """Kill the processes in `started` and all that descend from this one. Stopped ones end too.

    Args:
        started: those that descended from this one before. A parent that has ended since leaves its children to init.
    """
    for process in {*started, *descendants()}:
        with suppress(psutil.NoSuchProcess):
            process.kill()
