"""Turns the report's data into one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cluster.pages.html import figure, page_environment
from distill.report import plots
from distill.report.quality import TITLES

Row = dict[str, Any]
Lines = dict[str, list[tuple[float, float]]]
METRICS = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "kappa": "Kappa", "auc": "AUC", "ndcg_at_10": "NDCG@10"}
KINDS = {"sft": "SFT", "dpo": "DPO", "lrkd": "LRKD", "ce_only": "labels only"}


def render(report: Mapping[str, Any]) -> str:
    """Return the page. All texts of the data are escaped; only our own SVG is not."""
    template = page_environment(Path(__file__).parent).get_template("report.html.j2")
    drawn = {name: Markup(text) for name, text in draw(report).items()}
    judges = [name for name in TITLES if name in report["segments"][0]["judges"]] if report["segments"] else []
    names = {row["stage"] for row in report["stages"]}
    return template.render(
        r=report, plots=drawn, titles=TITLES, metrics=METRICS, kinds=KINDS, judges=judges, stages=names
    )


def draw(report: Mapping[str, Any]) -> dict[str, str]:
    """Return all plots that there is data for, by name."""
    logs = report["curves"]

    def lines(key: str, *names: str) -> Lines:
        return {
            f"{KINDS[name]}, {split}": points(logs.get(name, ()), split, key)
            for name in names
            for split in ("train", "dev")
        }

    ratios = {
        f"{word} ratio": points(logs.get("lrkd", ()), "dev", f"alignment_over_ce_{word}")
        for word in ("loss", "gradient")
    }
    skill = {"dev": points(logs.get("lrkd", ()), "dev", "alignment_skill")}
    found = {
        "headline": headline_plot(report["headline"]["judges"]),
        "sft": curve_plot("sft", "Loss", "loss", lines("loss", "sft")),
        "dpo": curve_plot("dpo", "Loss", "loss", lines("loss", "dpo")),
        "margin": curve_plot("margin", "Margin of chosen over rejected", "margin", lines("margin", "dpo")),
        "student": curve_plot("student", "Loss", "loss", lines("loss", "lrkd", "ce_only")),
        "macro_f1": curve_plot("macro_f1", "Macro-F1", "macro-F1", lines("macro_f1", "lrkd", "ce_only")),
        "ratio": curve_plot("ratio", "Alignment over cross-entropy", "alignment / cross-entropy", ratios, zero=True),
        "skill": curve_plot("skill", "Alignment skill", "skill", skill, zero=True),
        "latency": latency_plot(report["latency"]) if report["latency"] else "",
    }
    return {name: text for name, text in found.items() if text}


def headline_plot(judges: Mapping[str, Row]) -> str:
    """Plot every judge's metrics on one axis."""
    shown = [key for key in METRICS if any(row.get(key) is not None for row in judges.values())]
    series = {TITLES[name]: [row.get(key) for key in shown] for name, row in judges.items()}
    said = "; ".join(f"{name}: accuracy {figure(values[0])}" for name, values in series.items())
    alt = f"Metrics of every judge on the test split. {said}."
    return plots.dots("headline", alt, [METRICS[key] for key in shown], series)


def points(rows: Sequence[Row], split: str, key: str) -> list[tuple[float, float]]:
    """Return one figure of one split by step; step 0 is before training."""
    return [(row["step"], row[key]) for row in rows if row["split"] == split and key in row]


def curve_plot(name: str, title: str, ylabel: str, lines: Lines, zero: bool = False) -> str:
    """Plot the lines that have points; the alt text gives their first and last values. Return "" without any."""
    shown = {label: line for label, line in lines.items() if line}
    if not shown:
        return ""
    ends = "; ".join(f"{label} from {line[0][1]:.3g} to {line[-1][1]:.3g}" for label, line in shown.items())
    return plots.curves(name, f"{title} by optimizer step: {ends}.", ylabel, shown, zero)


def latency_plot(latency: Mapping[str, Any]) -> str:
    """Plot how long single pairs took."""
    marks = {name: latency[f"{name}_ms"] for name in ("p50", "p99")}
    count, (p50, p99) = len(latency["single_ms"]), marks.values()
    alt = f"Histogram of {count} timings: median {p50:.1f} ms, 99th percentile {p99:.1f} ms."
    return plots.histogram("latency", alt, latency["single_ms"], marks)
