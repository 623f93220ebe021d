"""Measures what is left of a run's speed when a worker is killed every 60 or 30 s, and whether anything is lost by it.

Each arm is a run in a process of its own, with `cluster.punisher` beside it from its first answer or step on. Goodput
is what it finishes per second under failures over what it finishes without. A generation asks scripted engines; with
`--model` it asks one vLLM, whose own processes are killed too. With one of the `--arms` the other's rows stay.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
from resilience_arms import NOTES, STAGE, STEPS
from results import RESULTS, Figure, write_results

from cluster.base.tables import rows_of, values_of
from cluster.training.driver import read_history
from mpcot.config import PerspectiveSettings

ARMS = Path(__file__).with_name("resilience_arms.py")
PAIRS, PAIRS_OF_A_MODEL = 8000, 100  # calm, 4 minutes of scripted engines
GENERATION_MTBF_S, TRAINING_MTBF_S = (None, 60.0, 30.0), (None, 60.0)
PATIENCE_S, LOOK_S = 1800.0, 0.1
ROWS = RESULTS / "resilience.csv"
Row = dict[str, Any]


def answer_parts(run_dir: Path) -> list[Path]:
    """Return the parts that workers have written, in the order of time."""
    return sorted((run_dir / STAGE / "answers").glob("*.parquet"), key=lambda part: part.stat().st_mtime)


def generation_row(run_dir: Path, pairs: int) -> Row:
    """Return answers, and seconds from the first part on disk to the last; what is lost, and what is there twice."""
    first, *_, last = parts = answer_parts(run_dir)
    keys = Counter(key for part in parts for batch in values_of(part, "key") for key in batch)
    rows: Counter[tuple[str, str]] = Counter()
    for kind in ("kept", "filtered", "failed"):
        found = rows_of(run_dir / STAGE / f"{kind}.parquet", ["pair_id", "perspective"])
        rows.update((row["pair_id"], row["perspective"]) for row in found)
    wanted = pairs * len(PerspectiveSettings().names)
    notes = run_dir / NOTES
    before = sum(map(len, values_of(first, "key")))
    return {
        "done": len(keys) - before,
        "seconds": last.stat().st_mtime - first.stat().st_mtime,
        "lost": max(wanted - len(keys), wanted - len(rows)),
        "twice": keys.total() - len(keys) + rows.total() - len(rows),
        "asked_again": len(notes.read_text(encoding="utf-8").split()) - wanted if notes.exists() else None,
    }


def training_row(run_dir: Path, calm: Sequence[float]) -> Row:
    """Return steps, and seconds from the first to the last; steps that are missing, there twice, or learnt otherwise.

    Args:
        calm: the losses of the same training without failures.
    """
    history = [row for row in read_history(run_dir / "out" / "history.jsonl") if row["split"] == "train"]
    steps = {row["step"] for row in history}
    passes = [float(line) for line in (run_dir / NOTES).read_text(encoding="utf-8").split()]
    other = sum(row["loss"] != loss for row, loss in zip(history, calm, strict=False))
    return {
        "done": len(steps),
        "seconds": passes[-1] - passes[0],
        "lost": STEPS - len(steps) + other,
        "twice": len(history) - len(steps),
        "asked_again": len(passes) - STEPS,
    }


@contextmanager
def arm(run_dir: Path, *given: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run an arm while the block waits for it; what it says goes to a file."""
    run_dir.mkdir()
    with (run_dir / "said").open("wb") as said:
        driver = subprocess.Popen([sys.executable, ARMS, run_dir, *map(str, given)], stdout=said, stderr=said)
        try:
            yield driver
        finally:
            if driver.poll() is None:
                driver.terminate()
                driver.wait()


def run_arm(run_dir: Path, begun: Callable[[], bool], mtbf_s: float | None, seed: int, *given: object) -> int:
    """Run an arm, punished from when it has `begun`. Return how often something was killed.

    Raises:
        RuntimeError: the run failed.
    """
    killed = run_dir / "killed.jsonl"
    with arm(run_dir, *given) as driver:
        while not begun() and driver.poll() is None:
            time.sleep(LOOK_S)
        if mtbf_s:
            told = [str(driver.pid), "--mtbf-s", str(mtbf_s), "--seed", str(seed), "--log", killed]
            subprocess.run([sys.executable, "-m", "cluster.punisher", *told], check=True, stdout=subprocess.DEVNULL)
        driver.wait(PATIENCE_S)
    if driver.returncode:
        raise RuntimeError((run_dir / "said").read_text(encoding="utf-8", errors="replace")[-3000:])
    return len(killed.read_text(encoding="utf-8").splitlines()) if killed.exists() else 0


def generation(work: Path, mtbf_s: float | None, seed: int, model: str | None) -> Row:
    run_dir = work / f"generation-{mtbf_s}"
    pairs = PAIRS_OF_A_MODEL if model else PAIRS
    given = ["--model", model] if model else []
    kills = run_arm(run_dir, lambda: bool(answer_parts(run_dir)), mtbf_s, seed, "--pairs", pairs, *given)
    return {"arm": "generation", "mtbf_s": mtbf_s, "kills": kills} | generation_row(run_dir, pairs)


def training(work: Path, mtbf_s: float | None, seed: int) -> Row:
    run_dir = work / f"training-{mtbf_s}"
    kills = run_arm(run_dir, (run_dir / NOTES).exists, mtbf_s, seed)
    history = read_history(work / "training-None" / "out" / "history.jsonl")
    calm = [row["loss"] for row in history if row["split"] == "train"]
    return {"arm": "training", "mtbf_s": mtbf_s, "kills": kills} | training_row(run_dir, calm)


def figures(rows: Sequence[Row]) -> Iterator[Figure]:
    """Yield the goodput of each arm with failures, and the ledger of all."""
    speed = {(row["arm"], row["mtbf_s"]): row["done"] / row["seconds"] for row in rows}
    for row in rows:
        if row["mtbf_s"] and row["kills"]:  # a run that met no failure says nothing of them
            name = f"{row['arm']}_goodput_{row['mtbf_s']:g}s"
            share = speed[row["arm"], row["mtbf_s"]] / speed[row["arm"], None]
            unit = f"of the speed without failures; {row['kills']} kills in {row['seconds']:.0f} s"
            yield Figure(name, share, unit, at_least=0.8 if name == "generation_goodput_60s" else None)
    for what, unit in (("lost", "answers and steps"), ("twice", "answers written and steps taken again")):
        yield Figure(what, sum(row[what] for row in rows), unit, at_most=0)


def measured() -> list[Row]:
    """Return the rows of the last run."""
    if not ROWS.exists():
        return []
    numbers = pa.csv.ConvertOptions(column_types={"mtbf_s": pa.float64(), "asked_again": pa.int64()})
    return pa.csv.read_csv(ROWS, convert_options=numbers).to_pylist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a model folder that vLLM loads, in place of scripted engines")
    parser.add_argument("--seed", type=int, default=0, help="decides when which worker is killed")
    parser.add_argument("--arms", nargs="+", choices=("generation", "training"), default=("generation", "training"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="broadfast-resilience-") as folder:
        arms = {
            "generation": [
                partial(generation, Path(folder), mtbf_s, given.seed, given.model) for mtbf_s in GENERATION_MTBF_S
            ],
            "training": [partial(training, Path(folder), mtbf_s, given.seed) for mtbf_s in TRAINING_MTBF_S],
        }
        rows = [row for row in measured() if row["arm"] not in given.arms]
        for measure in (measure for arm in given.arms for measure in arms[arm]):
            rows.append(measure())
            print(rows[-1], flush=True)
    write_results("resilience", list(figures(rows)), rows)


if __name__ == "__main__":
    main()
