"""`broadfast score` killed as by a power cut: the same call goes on, no row is lost and none is scored twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.base.tables import read_table
from tests.helpers.report_run import write_export

ROOT = Path(__file__).parents[2]
ROWS, PATIENCE_S = 4000, 900.0
FEW = ("--set", "bulk.rows_per_part=50", "--set", "bulk.replicas=1", "--set", "cluster.num_cpus=2")


def command(export: Path, table: Path, out: Path) -> list[str]:
    words = ("score", export, table, "--out", out, *FEW, "--set", "cluster.object_store_mb=100", "-v")
    return [sys.executable, "-m", "workflows.cli", *map(str, words)]


def kill(process: subprocess.Popen[Any]) -> None:
    """Kill the command with all that it started."""
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for child in started:
        if child.is_running():
            child.kill()
    psutil.wait_procs(started, timeout=PATIENCE_S)
    process.wait()


def test_a_killed_scoring_goes_on(tmp_path: Path) -> None:
    export = write_export(tmp_path / "export", tmp_path / "bert")
    rows = [{"query": f"red {n}", "product_id": f"p{n}", "title": f"blue lamp {n}"} for n in range(ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet", row_group_size=900)
    out, asked = tmp_path / "out", command(export, tmp_path / "pairs.parquet", tmp_path / "out")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(asked, cwd=ROOT, start_new_session=True, stdout=log, stderr=log)
        ended = time.monotonic() + PATIENCE_S
        while len(list(out.glob("*.parquet"))) < 5:
            assert process.poll() is None and time.monotonic() < ended, (tmp_path / "log").read_text()
            time.sleep(0.01)
        kill(process)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert 5 <= len(before) < ROWS / 50
    done = subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True, timeout=PATIENCE_S)
    kept = sum(pq.read_metadata(path).num_rows for path in before)
    assert f"{ROWS:,} rows scored, {ROWS - kept:,} of them now" in " ".join(done.stdout.split())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(read_table(out)["source_row"].to_pylist()) == list(range(ROWS))
