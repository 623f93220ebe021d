"""Follows the README in a fresh clone, and times `make setup`, `make demo` and, with `--test`, the tests.

Memory is that of all processes at the peak, with shared pages counted once (PSS), read every few seconds. A processor
without bf16 products has figures of its own; those of the other kind of processor stay as they were measured.
`ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2` makes a faster processor stand in for such a one.
"""

from __future__ import annotations

import csv
import subprocess
import tempfile
import threading
import time
from argparse import ArgumentParser
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from results import RESULTS, Figure, write_results

from cluster.base.processor import cpu_multiplies_bf16
from cluster.base.stage_folder import MANIFEST, read_json
from workflows.stages import STAGES

ROOT = Path(__file__).parents[1]
EVERY_S = 3.0
# Seconds or GiB at the most, on a processor with bf16 products and on one without.
GOALS = {"demo_s": (480, 720), "stages_s": (None, 420), "install_s": (None, None), "peak_gib": (6, 6)}
GOALS |= {"test_s": (900, 1800), "test_quick_s": (120, 120)}


class PeakMemory(threading.Thread):
    """Watches the memory of this process's children until it is ended."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes, self.ended = 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(EVERY_S):
            found = 0
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    found += process.memory_full_info().pss
            self.peak_bytes = max(self.peak_bytes, found)


def timed(target: str, clone: Path) -> float:
    """Run `make TARGET` in the clone and return how many seconds it took."""
    began = time.monotonic()
    subprocess.run(["make", target], cwd=clone, check=True)
    return time.monotonic() - began


def measure(clone: Path, test: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Return the figures by their plain names, and the seconds of each stage."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    memory = PeakMemory()
    memory.start()
    install = timed("setup", clone)
    figures = {"install_s": install, "demo_s": install + timed("demo", clone)}
    memory.ended.set()
    stages = {stage.name: read_json(clone / "runs/demo" / stage.name / MANIFEST)["seconds"] for stage in STAGES}
    figures |= {"stages_s": sum(stages.values()), "peak_gib": memory.peak_bytes / 2**30}
    if test:
        figures |= {"test_quick_s": timed("test-quick", clone), "test_s": timed("test", clone)}
    return figures, stages


def merged(measured: dict[str, float], kind: str) -> list[Figure]:
    """Return the measured figures under the names of this kind of processor, and those of other names as they were."""
    file = RESULTS / "demo.json"
    values = {f["name"]: f["value"] for f in read_json(file)["figures"]} if file.exists() else {}
    values |= {name + kind: round(value, 2) for name, value in measured.items()}
    return [_figure(name, value) for name, value in sorted(values.items())]


def _figure(name: str, value: float) -> Figure:
    plain = name.removesuffix("_without_bf16")
    return Figure(name, value, "GiB" if plain == "peak_gib" else "s", at_most=GOALS[plain][name != plain])


def rows_of(stages: dict[str, float], kind: str) -> list[dict[str, Any]]:
    """Return the seconds per stage of this kind of processor, beside those of the other as they were."""
    file, processor = RESULTS / "demo.csv", kind.strip("_") or "with_bf16"
    before = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines())) if file.exists() else []
    own = [{"processor": processor, "stage": name, "seconds": seconds} for name, seconds in stages.items()]
    return [row for row in before if row["processor"] != processor] + own


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--test", action="store_true", help="time the tests, too")
    given = parser.parse_args()
    kind = "" if cpu_multiplies_bf16() else "_without_bf16"
    with tempfile.TemporaryDirectory(prefix="broadfast-demo-") as folder:
        figures, stages = measure(Path(folder) / "clone", given.test)
    write_results("demo", merged(figures, kind), rows_of(stages, kind))


if __name__ == "__main__":
    main()
