"""Small studies: run folders of tiny shops, settings that finish in seconds, runs made in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.base.stage_folder import write_json
from cluster.config import TrainSettings
from distill.config import MlpExtractor, StudentSettings
from distill.study.config import DataSet, StudyConfig, Tuning
from distill.study.job import Job, run_one
from mpcot.config import PerspectiveSettings
from mpcot.sources.config import LabelSettings
from tests.helpers.lrkd_tasks import BARE
from tests.helpers.tiny_shop import BINARY, NO, PERSPECTIVES, TARGET_WIDTH, YES, make_run, write_stages

LABELS, NAMES = LabelSettings(scheme="binary"), PerspectiveSettings(names=PERSPECTIVES)
SAVED = {"labels": {"scheme": "binary"}, "perspectives": {"names": list(PERSPECTIVES)}}
TRAIN = TrainSettings(global_batch=8, micro_batch=8, precision="fp32", warmup_ratio=0)
ROWS = ("labels", "kl", "lrkd_kl", "shuffled")
TUNING: dict[str, Any] = {
    "learning_rate": (1e-3, 3e-3),
    "epochs": (1,),
    "soft_label_weight": (1.0,),
    "alignment_weight": (0.1, 1.0),
}


def shop_run(run_dir: Path) -> Path:
    """The tiny shop as a run folder that a study can read."""
    write_json(make_run(run_dir) / "config.json", SAVED)
    return run_dir


def study_config(encoder: Path, records: Path, *runs: Path, **changes: Any) -> StudyConfig:
    """Two learning rates, two lambdas, two seeds, two folds, one epoch."""
    given: dict[str, Any] = {
        "data": [DataSet(name=run.name, run=run) for run in runs],
        "rows": ROWS,
        "seeds": (1, 2),
        "folds": 2,
        "records": records,
        "bootstrap_resamples": 100,
        "tuning": Tuning(**TUNING),
        "student": StudentSettings(model=str(encoder), max_tokens=32, train=TRAIN),
    }
    return StudyConfig(**(given | changes))


def small_student(encoder: Path, **changes: Any) -> StudentSettings:
    """A student of two epochs whose latent vectors are aligned."""
    train = TRAIN.model_copy(update={"epochs": 2, "learning_rate": 3e-3})
    given: dict[str, Any] = BARE | {"model": str(encoder), "max_tokens": 32, "train": train, "alignment_weight": 1.0}
    return StudentSettings(**(given | {"extractor": MlpExtractor(hidden=8), "baseline": False} | changes))


def small_job(encoder: Path, run: Path, **changes: Any) -> Job:
    """The second of three folds, tested."""
    given: dict[str, Any] = {"run": run, "labels": LABELS, "perspectives": NAMES, "student": small_student(encoder)}
    return Job(**(given | {"seed": 3, "fold": 1, "folds": 3, "folds_seed": 13, "test": True, "threads": 1} | changes))


class Here:
    """Stands for the Ray tasks: makes runs in this process, and remembers which."""

    def __init__(self) -> None:
        self.made: list[Job] = []

    def __call__(self, jobs: Sequence[Job], workers: object) -> Iterator[tuple[int, dict[str, Any] | str]]:
        for place, job in enumerate(jobs):
            self.made.append(job)
            yield place, run_one(job)


def planted_run(run_dir: Path, noise: float = 0.4) -> Path:
    """A run whose training labels are wrong in `noise` of the pairs, while the rationales know the true one."""
    draw = np.random.default_rng(0)
    pairs, judged, targets = [], [], []
    for n in range(480):
        true = YES if draw.random() < 0.5 else NO
        split = "train" if n < 240 else "dev" if n < 320 else "test"
        wrong = split == "train" and draw.random() < noise
        words = draw.choice(["drill", "lamp", "mug", "case"], 3)
        title = f"{words[0]} {'red' if true == YES else 'blue'} {words[1]}"
        pair = dict.fromkeys(("brand", "description"))
        pair |= {"pair_id": f"p{n:03}", "query_id": f"q{n}", "product_id": f"x{n}", "locale": "us", "split": split}
        label = (NO if true == YES else YES) if wrong else true
        pairs.append(pair | {"query": str(words[2]), "title": title, "label": label})
        soft = [0.5, 0.5]
        judged.append(
            {
                "pair_id": pair["pair_id"],
                "vote": true,
                "agreement": 1.0,
                "soft": soft,
                "verdicts": [true] * 2,
                "rationales": [f"it is {title}"] * 2,
                "perspective_soft": [soft] * 2,
            }
        )
        vector = np.eye(TARGET_WIDTH)[BINARY.index(true)].tolist()
        targets.append({"pair_id": pair["pair_id"], "vectors": [vector] * 2})
    write_stages(run_dir, pairs, judged, targets)
    write_json(run_dir / "config.json", SAVED)
    return run_dir
