"""Writes the figures of the study of what LRKD is worth, from the finished runs in `benchmarks/study`.

It trains nothing. `broadfast study workflows/configs/study.toml` makes the runs, which takes hours and can be resumed.
Given finished runs of the data sets, it adds what their reports say of explanations.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from results import RESULTS, Figure, write_results

from cluster.base.errors import UserError
from cluster.base.progress import console
from cluster.base.stage_folder import read_manifest
from cluster.base.whole_files import whole_file
from distill.study.compare import compare
from distill.study.statistics import METRICS
from distill.study.study import run_study
from distill.study.study_page import markdown
from workflows.config import load_study

ROOT = Path(__file__).parents[1]
# By the beginning of a figure's name; a goal of 0 is to be above it.
GOALS = {
    "accuracy_gain_points": 2.4,
    "macro_f1_gain_points": 3.9,
    "accuracy_gain_low": 0.0,
    "macro_f1_gain_low": 0.0,
    "gain_over_kl_low": 0.0,
    "gain_over_same_verdict_low": 0.0,
}


def figures(found: Mapping[str, float]) -> Iterator[Figure]:
    """Yield every figure, pooled or of one data set, with the goal of its kind."""
    for name, value in found.items():
        kind = next((kind for kind in GOALS if name.startswith(kind)), None)
        goal = {} if kind is None else {"at_least" if GOALS[kind] else "above": GOALS[kind]}
        unit = "nats" if "same_verdict" in name else "points"
        yield Figure(name, value, f"{unit}, row of the primary test", **goal)


def explanations(runs: Mapping[str, Path]) -> Iterator[Figure]:
    """Yield what the reports of finished runs say of explanations, of each data set and the mean over them."""
    found = {name: read_manifest(run / "11-report") or {} for name, run in runs.items()}
    told = {
        name: {k: v for k, v in manifest.get("figures", {}).items() if k.startswith("explanation_")}
        for name, manifest in found.items()
    }
    for name in dict.fromkeys(key for own in told.values() for key in own):
        unit = "points, test pairs of the run" if "points" in name else "share of the run's test pairs"
        values = {data: own[name] for data, own in told.items() if name in own}
        if len(values) == len(runs) > 1:
            yield Figure(name, fmean(values.values()), unit)
        yield from (Figure(f"{name}_{data}", value, unit) for data, value in values.items())


def line(data: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a data set as a line of the raw table."""
    spread = {f"{metric}_{part}": row[metric][part] for metric in METRICS for part in ("mean", "sd")}
    names = {"data": data, "row": row["name"], "best": row["best"], "seeds": row["seeds"]}
    return names | spread | {"ndcg": row["ndcg_at_10"], "alignment_skill": row["alignment_skill"]}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="NAME=RUN_DIR", help="finished runs, for explanations")
    given = (one.partition("=") for one in parser.parse_args().runs)
    runs = {name: Path(run) for name, _, run in given}
    config = load_study(ROOT / "workflows" / "configs" / "study.toml")
    config = config.model_copy(update={"records": ROOT / config.records})
    try:
        report = compare(config, *run_study(config, make=False))
    except UserError as error:
        console().print(f"study: there are no figures yet. {error}", highlight=False)
        return
    rows = [line(part["name"], row) for part in report["data"] for row in part["rows"]]
    write_results("study", [*figures(report["figures"]), *explanations(runs)], rows)
    with whole_file(RESULTS / "study.md") as partial:
        partial.write_text(markdown(report), encoding="utf-8")


if __name__ == "__main__":
    main()
