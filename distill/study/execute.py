"""Makes the runs of a study side by side, as Ray tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from distill.study.config import StudyWorkers


def execute(jobs: Sequence[Any], workers: StudyWorkers) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Make runs as Ray tasks; as each one ends, yield its number and its result, or the error's text if it failed."""
    import ray

    from distill.study.job import run_one

    task = ray.remote(num_cpus=workers.cpus_per_run, num_gpus=workers.gpus_per_run, max_retries=2)(run_one)
    waiting = {task.remote(job): place for place, job in enumerate(jobs)}
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        place = waiting.pop(done)
        try:
            result = ray.get(done)
        except ray.exceptions.RayError as error:
            result = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        yield place, result
