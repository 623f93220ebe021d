"""Measures how time, memory and files of the stages around the models grow with the number of requests.

Stages 1, 2, 4, 5, 7 and 8 run as they are, with a source of parquet and stand-ins for the models (see `scale_arms.py`);
then `broadfast verify`. So everything around a model is measured. Stages 3 and 6 train, and 9 to 11 are about the
student: without a model nothing is left of them.

Each size runs in processes of its own: once from the beginning, and once more in stage 2 with all its answers there
but not sorted. What a size took goes to `results/scale.jsonl` at once, and sizes that are there are not measured again,
so a series may be interrupted, or its sizes be given one by one. Delete the file to begin anew.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from results import RESULTS, Figure, in_own_process, write_results
from scale_arms import CORES, PERSPECTIVES, write_source

from cluster.base.stage_folder import MANIFEST, read_json

ROWS = RESULTS / "scale.jsonl"
ARMS = Path(__file__).with_name("scale_arms.py")
SIZES = (100_000, 300_000, 1_000_000)
TEN_MILLION = 10_000_000
HEAD_CORES = 16  # of the machine that the estimate is for
Row = dict[str, Any]


def measure(work: Path, requests: int) -> Row:
    """Measure one size from the beginning, and stage 2 once more with all its answers there but not sorted."""
    run_dir, pairs = work / str(requests), requests // len(PERSPECTIVES.names)
    write_source(run_dir / "source.parquet", pairs)
    found = in_own_process(ARMS, run_dir, pairs)
    files = sum(path.is_file() for path in run_dir.rglob("*"))
    counts = read_json(run_dir / "2-rationales" / MANIFEST)["counts"]
    preferences = read_json(run_dir / "5-preferences" / MANIFEST)["counts"]["preferences"]
    for item in (run_dir / "2-rationales").glob("*.*"):
        item.unlink()
    again = in_own_process(ARMS, run_dir, pairs, "--only", "2-rationales")
    assert read_json(run_dir / "2-rationales" / MANIFEST)["figures"]["asked"] == 0
    shutil.rmtree(run_dir)
    row = {"size": requests, "requests": counts["requested"], "preferences": preferences, "files": files} | found
    return row | {"resume": again["2-rationales"], "resume_gib": again["driver_gib"]}


def measured() -> list[Row]:
    """Return what was measured so far, from the smallest size to the largest."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.exists() else []
    return sorted(map(json.loads, lines), key=lambda row: row["requests"])


def peak_gib(rows: list[Row], requests: int) -> float:
    """Return the driver's largest memory at a size: as measured, or on the line through the two largest sizes."""
    peaks = {row["requests"]: max(row["driver_gib"], row["resume_gib"]) for row in rows}
    for size, peak in peaks.items():
        if math.isclose(size, requests, rel_tol=0.01):
            return peak
    (x, before), (y, largest) = sorted(peaks.items())[-2:]
    return before + (largest - before) / (y - x) * (requests - x)


def figures(rows: list[Row]) -> list[Figure]:
    """Compare the largest size with the one before it, and say what both let expect of more."""
    before, largest = rows[-2:]
    names = [name for name in largest if name[0].isdigit() and not name.endswith("_gib")]
    seconds = [sum(row[name] for name in names) for row in (before, largest)]
    growth = largest["requests"] / before["requests"]
    per_request = (seconds[1] - seconds[0]) / (largest["requests"] - before["requests"])
    excess = seconds[1] / (seconds[0] * growth)
    more_files = (largest["files"] - before["files"]) / (growth - 1) / before["requests"] * TEN_MILLION
    driver = (largest["driver_cpu_s"] - before["driver_cpu_s"]) / (largest["requests"] - before["requests"])
    # The driver is one process, whose own threads are not many; what workers do is shared by all cores.
    spread = max(0.0, CORES * per_request - driver) / HEAD_CORES
    hours = 300_000_000 * (driver + spread) / 3600
    ten, one = peak_gib(rows, TEN_MILLION), peak_gib(rows, TEN_MILLION // 10)
    resume = largest["resume"] * TEN_MILLION / largest["requests"]
    return [
        Figure("time_exponent_excess", excess, "time over requests in proportion", at_most=1.05),
        Figure("time_exponent", math.log(seconds[1] / seconds[0], growth), "power of the requests"),
        Figure("driver_peak_gib_10m", ten, "GiB, in proportion", at_most=4),
        Figure("memory_10m_over_1m", ten / one, "ratio, in proportion", at_most=1.15),
        Figure("resume_10m_s", resume, "s, in proportion", at_most=60),
        Figure("files_10m", more_files, "files, in proportion", at_most=10_000),
        Figure("seconds_per_million", per_request * 1e6, "s on this machine's cores"),
        Figure("driver_cpu_s_per_million", driver * 1e6, "s of the driver's CPU time"),
        Figure("hours_300m", hours, f"h, estimated for {HEAD_CORES} cores"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of requests")
    given = parser.parse_args()
    for size in sorted(set(given.sizes) - {row["size"] for row in measured()}):
        with tempfile.TemporaryDirectory(prefix="broadfast-scale-") as work:
            row = measure(Path(work), size)
        print(row, flush=True)
        with ROWS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    rows = measured()
    if len(rows) > 1:  # one size says nothing about growth
        write_results("scale", figures(rows), rows)


if __name__ == "__main__":
    main()
