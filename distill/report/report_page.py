"""Turns the report's data into one self-contained page: Jinja2 for the words and tables, Matplotlib for the plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cluster.pages.html import figure, page_environment
from distill.report import plots
from distill.report.quality import TITLES

Row = dict[str, Any]
METRICS = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "auc": "AUC", "ndcg_at_10": "NDCG@10"}
KINDS = {"sft": "SFT", "dpo": "DPO", "lrkd": "LRKD", "ce_only": "labels only"}


def render(report: Mapping[str, Any]) -> str:
    """Return the page. Texts of the data are escaped; only our own SVG is trusted."""
    template = page_environment(Path(__file__).parent).get_template("report.html.j2")
    drawn = {name: Markup(text) for name, text in draw(report).items()}
    judges = [name for name in TITLES if name in report["segments"][0]["judges"]] if report["segments"] else []
    return template.render(r=report, plots=drawn, titles=TITLES, metrics=METRICS, kinds=KINDS, judges=judges)


def draw(report: Mapping[str, Any]) -> dict[str, str]:
    """All plots that the data allows, by name."""
    found = {"headline": headline_plot(report["headline"]["judges"])}
    history = report["curves"]
    for name in ("sft", "dpo"):
        if name in history:
            found[name] = loss_plot(name, {KINDS[name]: history[name]})
    if "dpo" in history:
        found["margin"] = margin_plot(history["dpo"])
    found["student"] = loss_plot("student", {KINDS[n]: history[n] for n in ("lrkd", "ce_only") if n in history})
    found |= student_plots(history)
    if report["latency"]:
        found["latency"] = latency_plot(report["latency"])
    return {name: text for name, text in found.items() if text}


def headline_plot(judges: Mapping[str, Row]) -> str:
    """Every judge's metrics on one axis."""
    shown = [key for key in METRICS if any(row.get(key) is not None for row in judges.values())]
    series = {TITLES[name]: [row.get(key) for key in shown] for name, row in judges.items()}
    said = "; ".join(f"{name}: accuracy {figure(values[0])}" for name, values in series.items())
    return plots.dots(
        "headline", f"Metrics of every judge on the test split. {said}.", [METRICS[k] for k in shown], series
    )


def points(rows: Sequence[Row], split: str, key: str) -> list[tuple[float, float]]:
    """(step, value) of one figure of one split."""
    return [(row["step"], row[key]) for row in rows if row["split"] == split and key in row]


def lines(histories: Mapping[str, Sequence[Row]], key: str) -> dict[str, list[tuple[float, float]]]:
    """Train and dev lines of one figure, those with points."""
    wanted = {
        f"{name}, {split}": points(rows, split, key) for name, rows in histories.items() for split in ("train", "dev")
    }
    return {name: found for name, found in wanted.items() if found}


def loss_plot(name: str, histories: Mapping[str, Sequence[Row]]) -> str:
    """Loss on train and dev by step; step 0 is before training."""
    return curve_plot(name, "Loss", "loss", lines(histories, "loss"))


def margin_plot(history: Sequence[Row]) -> str:
    """DPO's reward margin, chosen minus rejected."""
    return curve_plot("margin", "Margin of chosen over rejected", "margin", lines({KINDS["dpo"]: history}, "margin"))


def student_plots(history: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """The student's macro-F1 on dev, and how much the alignment weighs beside cross-entropy."""
    students = {KINDS[name]: history[name] for name in ("lrkd", "ce_only") if name in history}
    found = {"macro_f1": curve_plot("macro_f1", "Macro-F1", "macro-F1", lines(students, "macro_f1"))}
    ratios = {
        word: points(history.get("lrkd", ()), "dev", f"alignment_over_ce_{word}") for word in ("loss", "gradient")
    }
    shown = {f"{word} ratio": line for word, line in ratios.items() if line}
    found["ratio"] = curve_plot("ratio", "Alignment over cross-entropy", "alignment / cross-entropy", shown, zero=True)
    return found


def curve_plot(
    name: str, title: str, ylabel: str, shown: dict[str, list[tuple[float, float]]], zero: bool = False
) -> str:
    """A line plot whose alt text gives each line's first and last value; nothing where there is no line."""
    if not shown:
        return ""
    ends = "; ".join(f"{label} from {line[0][1]:.3g} to {line[-1][1]:.3g}" for label, line in shown.items())
    return plots.curves(name, f"{title} by optimizer step: {ends}.", ylabel, shown, zero)


def latency_plot(latency: Mapping[str, Any]) -> str:
    """Histogram of single pairs."""
    marks = {name: latency[f"{name}_ms"] for name in ("p50", "p99")}
    count, (p50, p99) = len(latency["single_ms"]), marks.values()
    alt = f"Histogram of {count} timings: median {p50:.1f} ms, 99th percentile {p99:.1f} ms."
    return plots.histogram("latency", alt, latency["single_ms"], marks)
