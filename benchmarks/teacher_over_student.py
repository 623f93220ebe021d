"""What the teacher takes per pair beside the student: the same pairs on the same cores, in one run.

The teacher answers every pair from three perspectives through the generation stage, batched by vLLM, without the start
of its engine; the student scores all of them in process. Each works in a process of its own, one after the other.
`--model` names another teacher than the demo's, and `--teacher-pairs` how many of the pairs a slow one answers.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contest.running import Contestant
from contest.weights import HELD_OUT, ROOT, Pairs, make_pairs_of_real_length, prepare
from results import Figure, write_results

from cluster.base.ray_session import ray_session
from cluster.base.stage_folder import digest, read_json, write_json
from cluster.config import ClusterSettings
from cluster.models.folders import check_model, model_fingerprint
from mpcot.asking.generate import generate
from mpcot.asking.plan import GenerationPlan
from mpcot.config import AnswerSettings, PerspectiveSettings, Replicas, VllmEngine
from mpcot.perspectives.perspective import load_perspectives
from mpcot.schemes.scheme import load_scheme

MODEL = ROOT / "models" / "smollm2-135m-instruct"
# As stage 7 asks in `workflows/configs/demo.toml`, but for the description, which the student reads too.
ASK = AnswerSettings(temperature=0, max_tokens=64, max_chars=200, description_chars=400, max_failed_share=1)
ENGINE = VllmEngine(max_model_len=640, max_num_seqs=256, enforce_eager=True, replicas=Replicas(cpus=2))
AT_A_TIME = 200


def as_row(pair: dict[str, Any]) -> dict[str, Any]:
    """Return a pair as stage 1 writes it."""
    row = {"pair_id": digest(["teacher", pair["id"]]), "query_id": digest(pair["query"]), "locale": "us", "brand": None}
    row |= {name: pair[name] for name in ("query", "title", "description", "label")}
    return row | {"product_id": pair["id"], "split": "test"}


def teacher(pairs: Pairs, folder: str) -> dict[str, Any]:
    """Answer all pairs from every perspective; return seconds without the engine's start, and counts."""
    model = check_model("--model", folder)
    scheme, perspectives = load_scheme("esci"), load_perspectives(PerspectiveSettings())
    plan = GenerationPlan(model, model_fingerprint(model), ENGINE, scheme, perspectives, ASK, seed=1)
    with tempfile.TemporaryDirectory(prefix="broadfast-teacher-") as work:
        with ray_session(ClusterSettings(num_cpus=2, object_store_mb=200)):
            started = time.monotonic()
            answers = generate(plan, map(as_row, pairs), Path(work), "judgements")
            seconds = time.monotonic() - started - answers.engine["start_s"]
        written = sum(sum(joined.answers["output_tokens"].to_pylist()) for joined in answers.by_pair())
    return {"judge": f"teacher {Path(folder).name}", "pairs": len(pairs), "seconds": seconds, "output_tokens": written}


def student(pairs: Pairs, rounds: int = 5) -> dict[str, Any]:
    """Score all pairs in process, `AT_A_TIME` a call; return the median seconds of some rounds."""
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
    parser.add_argument("--teacher-pairs", type=int, help="pairs that the teacher answers; all if not given")
    parser.add_argument("--told", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    pairs = make_pairs_of_real_length()[HELD_OUT:][: given.pairs]
    if given.told:
        write_json(given.told, teacher(pairs[: given.teacher_pairs], given.model))
        return
    with tempfile.TemporaryDirectory() as work:
        told = Path(work) / "told.json"
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--told", str(told)], check=True)
        rows = [read_json(told), student(pairs)]
    slow, fast = (row["seconds"] / row["pairs"] for row in rows)
    ratio = slow / fast
    write_results(
        "teacher_over_student",
        [
            Figure("teacher_over_student_time", ratio, "ratio of times per pair", "at least 300", ratio >= 300),
            Figure("teacher_ms_per_pair", 1000 * slow, "ms, three perspectives", "", None),
            Figure("student_ms_per_pair", 1000 * fast, "ms, in process", "", None),
        ],
        rows,
    )


if __name__ == "__main__":
    main()
