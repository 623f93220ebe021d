"""Writing what a benchmark measured: `benchmarks/results/NAME.json`, the raw rows beside it."""

from __future__ import annotations

import csv
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.base.processor import cpu_multiplies_bf16
from cluster.base.progress import console
from cluster.base.stage_folder import versions, write_json

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    """One measured number with its goal; `holds` is None where there is no goal."""

    name: str
    value: float
    unit: str
    goal: str
    holds: bool | None


def machine() -> dict[str, Any]:
    """Return what the figures depend on: cores, memory, whether the processor multiplies bf16, what else ran."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "architecture": platform.machine(),
        "bf16_products": cpu_multiplies_bf16(),
        "gpu": False,
        "load_average_15_min": round(os.getloadavg()[2], 1),
    }


def _without_places(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the option's name for a place on this machine, which nobody else has."""
    named = pairwise(["", *arguments])
    return [option.lstrip("-").replace("-", "_").upper() if Path(a).is_absolute() else a for option, a in named]


def write_results(name: str, figures: Sequence[Figure], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write figures and raw rows, and print the figures as a table."""
    RESULTS.mkdir(exist_ok=True)
    command = " ".join(["python", f"benchmarks/{name}.py", *_without_places(sys.argv[1:])])
    date = datetime.now(UTC).date().isoformat()
    content = {"command": command, "date": date, "machine": machine(), "versions": versions()}
    write_json(RESULTS / f"{name}.json", content | {"figures": [asdict(figure) for figure in figures]})
    with (RESULTS / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = Table("figure", "value", "unit", "goal", "holds", title=name)
    for f in figures:
        table.add_row(
            f.name, f"{f.value:.4g}", f.unit, f.goal, {True: "yes", False: "[red]no[/red]", None: ""}[f.holds]
        )
    console().print(table)
    return RESULTS / f"{name}.json"
