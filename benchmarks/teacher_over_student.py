"""Compares the time that the teacher takes for a pair with the student's, on the same pairs and cores.

The teacher answers every pair from three perspectives through the generation stage, batched by vLLM; the start of its
engine does not count. The student scores all pairs in process. They run one after the other in processes of their own.
`--model` names another teacher than the demo's, and `--teacher-pairs` says how many pairs a slow one answers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from contest.running import Contestant
from contest.weights import HELD_OUT, ROOT, Pairs, make_pairs_of_real_length, prepare
from results import Figure, in_own_process, write_results

from cluster.base.ray_session import ray_session
from cluster.base.stage_folder import digest, write_json
from cluster.config import ClusterSettings
from cluster.models.folders import check_model, model_fingerprint
from mpcot.asking.generate import generate
from mpcot.asking.plan import GenerationPlan
from mpcot.config import AnswerSettings, PerspectiveSettings, Replicas, VllmEngine
from mpcot.perspectives.perspective import load_perspectives
from mpcot.schemes.scheme import load_scheme

MODEL = ROOT / "models" / "smollm2-135m-instruct"
# The answers of stage 7 in `workflows/configs/demo.toml`, but with the description, which the student reads too.
ASK = AnswerSettings(temperature=0, max_tokens=64, max_chars=200, description_chars=400, max_failed_share=1)
ENGINE = VllmEngine(max_model_len=640, max_num_seqs=256, enforce_eager=True, replicas=Replicas(cpus=2))
AT_A_TIME = 200


def as_row(pair: dict[str, Any]) -> dict[str, Any]:
    """Return a pair as stage 1 writes it."""
    row = {"pair_id": digest(["teacher", pair["id"]]), "query_id": digest(pair["query"]), "locale": "us", "brand": None}
    row |= {name: pair[name] for name in ("query", "title", "description", "label")}
    return row | {"product_id": pair["id"], "split": "test"}


def teacher(pairs: Pairs, folder: str) -> dict[str, Any]:
    """Answer all pairs from every perspective; return counts, and the seconds without the engine's start."""
    model = check_model("--model", folder)
    scheme, perspectives = load_scheme("esci"), load_perspectives(PerspectiveSettings())
    plan = GenerationPlan(model, model_fingerprint(model), ENGINE, scheme, perspectives, ASK, seed=1)
    with tempfile.TemporaryDirectory(prefix="broadfast-teacher-") as work:
        with ray_session(ClusterSettings(num_cpus=2, object_store_mb=200)):
            started = time.monotonic()
            rows = pa.RecordBatch.from_pylist([*map(as_row, pairs)])
            answers = generate(plan, [rows], Path(work), "judgements")
            seconds = time.monotonic() - started - answers.engine["start_s"]
        written = sum(sum(joined.answers["output_tokens"].to_pylist()) for joined in answers.by_pair())
    return {"judge": f"teacher {Path(folder).name}", "pairs": len(pairs), "seconds": seconds, "output_tokens": written}


def student(pairs: Pairs, rounds: int = 5) -> dict[str, Any]:
    """Score all pairs in process, `AT_A_TIME` in a call; return the median of some rounds in seconds."""
    contestant = Contestant.start("scorer", "contestant.py", "scorer", str(prepare(make_pairs_of_real_length())))
    assert "ready" in contestant.hear()
    starts = list(range(HELD_OUT, HELD_OUT + len(pairs), AT_A_TIME))
    taken = [sum(contestant.ask(time=starts, size=AT_A_TIME)) for _ in range(rounds + 1)][1:]
    contestant.stop()
    return {"judge": "student", "pairs": len(pairs), "seconds": statistics.median(taken), "output_tokens": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=400, help=f"a multiple of {AT_A_TIME}, at most {HELD_OUT}")
    parser.add_argument("--model", default=str(MODEL), help="folder or name of the teacher")
    parser.add_argument("--teacher-pairs", type=int, help="pairs that the teacher answers; by default all")
    parser.add_argument("--told", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    pairs = make_pairs_of_real_length()[HELD_OUT:][: given.pairs]
    if given.told:
        write_json(given.told, teacher(pairs[: given.teacher_pairs], given.model))
        return
    rows = [in_own_process(__file__, *sys.argv[1:]), student(pairs)]
    slow, fast = (row["seconds"] / row["pairs"] for row in rows)
    figures = [
        Figure("teacher_over_student_time", slow / fast, "ratio of times per pair", at_least=300),
        Figure("teacher_ms_per_pair", 1000 * slow, "ms, three perspectives"),
        Figure("student_ms_per_pair", 1000 * fast, "ms, in process"),
    ]
    write_results("teacher_over_student", figures, rows)


if __name__ == "__main__":
    main()
