"""Measures `broadfast score` beside its scorer in one process, how its memory grows, and one product through ONNX.

Speed is that of a student on all-minilm-l6-v2 with as many threads on both sides. It counts from the first part that is
written, so that the start of Ray, which a large table hardly notices, does not decide a small one. Memory is that of a
tiny student, with which a table can be large in little time.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import torch
from results import RESULTS, Figure, in_own_process, write_results
from scale_arms import MIB, TITLE, Memory

from cluster.base.processor import cores
from cluster.base.ray_session import ray_session
from cluster.base.shared_folder import SharedFolder
from cluster.base.stage_folder import write_json
from cluster.base.tables import table_writer, write_table
from cluster.config import ClusterSettings
from distill.config import PolyExtractor, StudentConfig
from distill.formats.int8 import write_int8
from distill.formats.onnx_graph import GRAPH, INT8_GRAPH, OnnxStudent, write_onnx
from distill.formats.pairs import RunPairs
from distill.student.model import build_student, load_tokenizer
from mpcot.records import texts
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.config import TableSource
from serve.bulk.config import BulkSettings
from serve.bulk.output import Wish
from serve.bulk.score import score_table
from serve.config import ServeSettings
from serve.scoring.scorer import Scorer

ROOT = Path(__file__).parents[1]
ROWS = RESULTS / "bulk.csv"
TABLE = pa.schema(texts("query", "product_id", "title"))
WORKER = "PartScorer"
SINGLE = ("scorer_ms", "onnx_ms", "onnx_int8_ms")
GRAPHS = (GRAPH, INT8_GRAPH)
GROUP_ROWS = 16_384


def write_pairs(path: Path, count: int) -> None:
    """Write a table of `count` pairs in row groups, as tools that write large tables do."""
    with table_writer(path, TABLE) as writer:
        for start in range(0, count, GROUP_ROWS):
            rows = [pair(n) for n in range(start, min(start + GROUP_ROWS, count))]
            writer.write_table(pa.Table.from_pylist(rows, TABLE))


def pair(n: int) -> dict[str, str]:
    words = 1 + n % 5  # titles of various lengths, as shops have them
    title = " ".join([TITLE.format(brand=f"Brand{n % 977}", n=n)] * words)[: 40 + 31 * (n % 7)]
    return {"query": f"cordless drill {n // 10}", "product_id": str(n), "title": title}


def write_student(folder: Path, tiny: bool) -> Path:
    """Write an untrained student, whose speed is that of a trained one: on MiniLM, or on two layers of width 32."""
    model = str(ROOT / "models" / "all-minilm-l6-v2")
    if tiny:
        from transformers import BertConfig, BertModel

        config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        BertModel(config).save_pretrained(folder / "encoder")
        load_tokenizer(model).save_pretrained(folder / "encoder")
        model = str(folder / "encoder")
    torch.manual_seed(1)
    made = StudentConfig(
        scheme=load_scheme("esci"), perspectives=("intent", "attributes", "rules"), extractor=PolyExtractor(),
        per_perspective=True, target_width=384, max_tokens=128, fields="title", fingerprint="made",
    )  # fmt: skip
    build_student(model, made).save(folder / "export", load_tokenizer(model))
    return folder / "export"


def in_process(export: Path, count: int) -> dict[str, Any]:
    """Score the pairs with the scorer alone, in the parts that the command has."""
    scorer = Scorer.load(export, ServeSettings(threads=len(cores()), kept_products=0))
    scorer.score([pair(n) for n in range(64)])
    size = BulkSettings().rows_per_part
    started = time.monotonic()
    for start in range(0, count, size):
        scorer.score([pair(n) for n in range(start, min(start + size, count))])
    return {"rows_per_s": count / (time.monotonic() - started)}


def one_product(export: Path, folder: Path, rounds: int = 60) -> dict[str, Any]:
    """Return the median milliseconds of one pair through the scorer and through its graphs.

    Each has its rounds alone, since onnxruntime's threads stay busy for a while after a call.
    """
    write_onnx(export, folder / "onnx")
    rows = [pair(7 * n) | {"label": "ESCI"[n % 4], "split": "train" if n % 2 else "test"} for n in range(128)]
    write_table(folder / "1-pairs" / "pairs.parquet", pa.Table.from_pylist(rows))
    write_int8(export, folder / "onnx", RunPairs(folder))
    threads = len(cores())
    scorer = Scorer.load(export, ServeSettings(threads=threads, kept_products=0))
    graphs = [OnnxStudent(folder / "onnx" / name, load_tokenizer(export), scorer.config, threads) for name in GRAPHS]
    arms = {"scorer": scorer.score, "onnx": graphs[0], "onnx_int8": graphs[1]}
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for name, score in arms.items():
        time.sleep(1)
        for n in range(rounds):
            started = time.perf_counter()
            score([pair(n)])
            taken[name].append(1000 * (time.perf_counter() - started))
    return {f"{name}_ms": round(statistics.median(each[rounds // 6 :]), 2) for name, each in taken.items()}


def by_command(export: Path, table: Path, out: Path, rows_per_part: int, copies: int) -> dict[str, Any]:
    """Score the table as the command does, and return its speed after the first parts and its memory."""
    threads = len(cores()) // copies
    settings = BulkSettings(replicas=copies, cpus_per_replica=threads, rows_per_part=rows_per_part)
    memory = Memory(WORKER)
    with ray_session(ClusterSettings(num_cpus=len(cores()), object_store_mb=200)):
        memory.start()
        found, _ = score_table(export, TableSource(path=str(table)), SharedFolder.at(out), settings, Wish())
    memory.ended.set()
    ended = sorted(path.stat().st_mtime for path in out.glob("*.parquet"))
    rest = found.scored - copies * rows_per_part
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "rows_per_s": rest / (ended[-1] - ended[copies - 1]),
        "driver_mib": round(driver / MIB, 1),
        "worker_mib": round(memory.workers / MIB, 1),
    }


def measure(what: str, export: Path, work: Path, rows: int, rows_per_part: int, copies: int = 1) -> dict[str, Any]:
    """Run one arm in a process of its own and return its row."""
    table = work / f"{rows}.parquet"
    if not table.exists():
        write_pairs(table, rows)
    out = work / f"{what}-{rows}-{time.monotonic_ns()}"
    arguments = ("--arm", what, "--export", export, "--table", table, "--out", out, "--rows", rows)
    found = in_own_process(__file__, *arguments, "--part", rows_per_part, "--copies", copies)
    row = {"what": what, "rows": rows, "copies": copies} | found
    print(row, flush=True)
    return row


def figures(rows: list[dict[str, Any]], small: int, large: int) -> list[Figure]:
    """Compare speeds round by round, and the memory of the larger table with that of the smaller."""
    rates = {what: [row["rows_per_s"] for row in rows if row["what"] == what] for what in ("scorer", "bulk")}
    over = statistics.median(b / s for b, s in zip(rates["bulk"], rates["scorer"], strict=True))
    peaks = {row["rows"]: row for row in rows if row["what"] == "memory"}
    grown = max(peaks[large][who] / peaks[small][who] for who in ("driver_mib", "worker_mib"))
    (single,) = (row for row in rows if row["what"] == "single")
    name = "memory_1m_over_100k" if large >= 1_000_000 else f"memory_{large // 1000}k_over_{small // 1000}k"
    return [
        Figure("bulk_over_scorer", over, "pairs/s over the scorer's in one process", at_least=0.95),
        Figure(name, grown, "largest of driver, copies", at_most=1.15),
        Figure("scorer_over_onnx_at_1", single["onnx_ms"] / single["scorer_ms"], "times the speed, fp32"),
        Figure("scorer_over_onnx_int8_at_1", single["onnx_int8_ms"] / single["scorer_ms"], "times the speed"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40_000, help="pairs whose speed is measured")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--most", type=int, default=1_000_000, help="rows of the larger table; the other has a tenth")
    parser.add_argument("--part", type=int, default=BulkSettings().rows_per_part, help="rows of a part")
    parser.add_argument("--copies", type=int, default=len(cores()), help="copies that share the cores, as by default")
    parser.add_argument("--single", action="store_true", help="measure one product again; the other rows stay")
    for hidden in ("arm", "export", "table", "out", "told"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.arm == "scorer":
        write_json(Path(given.told), in_process(Path(given.export), given.rows))
    elif given.arm == "single":
        write_json(Path(given.told), one_product(Path(given.export), Path(given.out)))
    elif given.arm:
        found = by_command(Path(given.export), Path(given.table), Path(given.out), given.part, given.copies)
        write_json(Path(given.told), found)
    else:
        contest(given)


def contest(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="broadfast-bulk-") as name:
        work = Path(name)
        export = write_student(work / "minilm", False)
        if given.single:
            rows = [row for row in pa.csv.read_csv(ROWS).to_pylist() if row["what"] != "single"]
        else:
            rows = list(of_tables(given, work, export))
        rows.append(measure("single", export, work, 1, given.part))
    sizes = sorted(row["rows"] for row in rows if row["what"] == "memory")
    columns = ("what", "rows", "copies", "rows_per_s", "driver_mib", "worker_mib", *SINGLE)
    write_results("bulk", figures(rows, *sizes), [{n: row.get(n) for n in columns} for row in rows])


def of_tables(given: argparse.Namespace, work: Path, export: Path) -> Iterator[dict[str, Any]]:
    """Measure the speed on MiniLM, and the memory of a tiny student, with tables."""
    for _ in range(given.rounds):
        yield measure("scorer", export, work, given.pairs, given.part)
        yield measure("bulk", export, work, given.pairs, given.part, given.copies)
    tiny = write_student(work / "tiny", True)
    for size in (given.most // 10 if given.most >= 1_000_000 else given.most // 4, given.most):
        yield measure("memory", tiny, work, size, given.part)


if __name__ == "__main__":
    main()
