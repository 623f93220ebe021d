"""Stage 11: a report of what the run did and how well, as one HTML page and as JSON."""

from __future__ import annotations

from typing import Any

from cluster.base.stage_folder import StageFolder, write_json
from cluster.base.tables import rows_of
from cluster.base.whole_files import disk_error
from distill.report.config import ReportStage
from distill.report.explained import explained
from distill.report.latency import measure
from distill.report.report_data import collect
from distill.report.report_page import render


def run(config: ReportStage, folder: StageFolder) -> None:
    """Write `report.json` and `report.html` from the finished folders, and time the exported student.

    Raises:
        UserError: a stage has not finished, or the disk is full.
    """
    report = collect(config, folder)
    pairs = [row for row in rows_of(folder.input("1-pairs") / "pairs.parquet") if row["split"] == "test"]
    report["latency"] = measure(folder.input("10-export"), pairs, config.report) if pairs else None
    tested = {row["pair_id"] for row in pairs}
    said = rows_of(folder.input("7-judgements") / "judgements.parquet")
    judged = {row["pair_id"]: row for row in said if row["pair_id"] in tested}
    report["explanations"] = explained(config, folder, pairs, judged)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json(folder.path / "report.json", report)
        (folder.path / "report.html").write_text(render(report), encoding="utf-8")
    except OSError as error:
        raise disk_error(error, folder.path) from error
    folder.finish({"samples": len(report["samples"])}, figures(report))


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """Return the few figures that the manifest and the end of a run show."""
    metrics = ("accuracy", "macro_f1", "kappa", "auc", "ndcg_at_10")
    judges = report["headline"]["judges"]
    found = {name: {metric: row.get(metric) for metric in metrics} for name, row in judges.items()}
    shown = report["explanations"] or {}
    explanations = {name: value for name, value in shown.items() if name.startswith("explanation_")}
    return found | {"ceiling": report["headline"]["ceiling"]} | explanations
