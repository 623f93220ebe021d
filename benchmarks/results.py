"""Writes what a benchmark measured to `benchmarks/results/NAME.json`, with the raw rows beside it."""

from __future__ import annotations

import csv
import operator
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.base.processor import cpu_multiplies_bf16
from cluster.base.progress import console
from cluster.base.stage_folder import read_json, versions, write_json

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    """One measured number and, if it has one, its goal."""

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None

    @property
    def goal(self) -> str:
        """Return the goal in words, or "" if there is none."""
        goals = {"at least": self.at_least, "at most": self.at_most, "above": self.above}
        return " and ".join(f"{word} {limit:g}" for word, limit in goals.items() if limit is not None)

    @property
    def holds(self) -> bool | None:
        """Return whether the goal is reached, or None if there is none."""
        limits = (self.at_least, operator.ge), (self.at_most, operator.le), (self.above, operator.gt)
        reached = [compare(self.value, limit) for limit, compare in limits if limit is not None]
        return all(reached) if reached else None


def in_own_process(
    script: str | Path, *arguments: object, python: str = sys.executable, environment: Mapping[str, str] | None = None
) -> Any:
    """Run a script and return what it writes as JSON to the file that it is given as `--told`.

    A file is used because libraries print to the standard output too.
    """
    with tempfile.TemporaryDirectory(prefix="broadfast-") as folder:
        told = Path(folder) / "told.json"
        command = [python, str(script), *map(str, arguments), "--told", str(told)]
        subprocess.run(command, env=environment, check=True)
        return read_json(told)


def machine() -> dict[str, Any]:
    """Return what the figures depend on: cores, memory, bf16 products, the GPU (false without one), and other load."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "architecture": platform.machine(),
        "bf16_products": cpu_multiplies_bf16(),
        "gpu": torch.cuda.is_available() and torch.cuda.get_device_name(),
        "load_average_15_min": round(os.getloadavg()[2], 1),
    }


def _without_places(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with paths on this machine replaced by the names of their options."""
    named = pairwise(["", *arguments])
    return [option.lstrip("-").replace("-", "_").upper() if Path(a).is_absolute() else a for option, a in named]


def write_results(name: str, figures: Sequence[Figure], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write figures and raw rows, and print the figures as a table."""
    RESULTS.mkdir(exist_ok=True)
    command = " ".join(["python", f"benchmarks/{name}.py", *_without_places(sys.argv[1:])])
    date = datetime.now(UTC).date().isoformat()
    content = {"command": command, "date": date, "machine": machine(), "versions": versions()}
    fields = ("name", "value", "unit", "goal", "holds")
    told = [{field: getattr(figure, field) for field in fields} for figure in figures]
    write_json(RESULTS / f"{name}.json", content | {"figures": told})
    with (RESULTS / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    show_results(name, figures)
    return RESULTS / f"{name}.json"


def show_results(title: str, figures: Sequence[Figure]) -> None:
    """Print the figures as a table."""
    table = Table("figure", "value", "unit", "goal", "holds", title=title)
    holds = {True: "yes", False: "[red]no[/red]", None: ""}
    for f in figures:
        table.add_row(f.name, f"{f.value:.4g}", f.unit, f.goal, holds[f.holds])
    console().print(table)
