"""Writes the figures of the study of what LRKD is worth, from the finished runs in `benchmarks/study`.

It trains nothing. `broadfast study workflows/configs/study.toml` makes the runs, which takes hours and can be resumed.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from results import RESULTS, Figure, write_results

from cluster.base.errors import UserError
from cluster.base.progress import console
from cluster.base.whole_files import whole_file
from distill.metrics import METRICS
from distill.study.compare import compare
from distill.study.study import run_study
from distill.study.study_page import markdown
from workflows.config import load_study

ROOT = Path(__file__).parents[1]
GOALS = {
    "accuracy_gain_points": 2.4,
    "macro_f1_gain_points": 3.9,
    "macro_f1_gain_low": 0.0,
    "gain_over_shuffled_low": 0.0,
}


def figures(found: Mapping[str, float]) -> Iterator[Figure]:
    """Yield every figure, pooled or of one data set, with the goal of its kind; a goal of 0 is to be above it."""
    for name, value in found.items():
        kind = next((kind for kind in GOALS if name.startswith(kind)), None)
        goal = {} if kind is None else {"at_least" if GOALS[kind] else "above": GOALS[kind]}
        yield Figure(name, value, "points, best LRKD row on dev", **goal)


def line(data: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a data set as a line of the raw table."""
    spread = {f"{metric}_{part}": row[metric][part] for metric in METRICS for part in ("mean", "sd")}
    names = {"data": data, "row": row["name"], "best": row["best"]}
    return names | spread | {"auc": row["auc"], "ndcg": row["ndcg_at_10"]}


def main() -> None:
    ArgumentParser(description=__doc__).parse_args()
    config = load_study(ROOT / "workflows" / "configs" / "study.toml")
    config = config.model_copy(update={"records": ROOT / config.records})
    try:
        report = compare(config, *run_study(config, make=False))
    except UserError as error:
        console().print(f"study: there are no figures yet. {error}", highlight=False)
        return
    rows = [line(part["name"], row) for part in report["data"] for row in part["rows"]]
    write_results("study", list(figures(report["figures"])), rows)
    with whole_file(RESULTS / "study.md") as partial:
        partial.write_text(markdown(report), encoding="utf-8")


if __name__ == "__main__":
    main()
