"""A study as Markdown, HTML and JSON: a table of its rows, and plots of their differences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from cluster.base.stage_folder import write_json
from cluster.base.whole_files import whole_file
from cluster.pages.html import page_environment
from distill.report import plots
from distill.study.conclusions import KINDS, NAMES, amount, comes_first
from distill.study.statistics import METRICS

HERE = Path(__file__).parent


def write_study(report: Mapping[str, Any], folder: Path) -> Path:
    """Write `study.json`, `study.md` and `study.html`; return the page's path.

    Raises:
        UserError: the disk is full or read-only.
    """
    write_json(folder / "study.json", report)
    for name, text in (("study.md", markdown(report)), ("study.html", page(report))):
        with whole_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return folder / "study.html"


def markdown(report: Mapping[str, Any]) -> str:
    """Return the study as Markdown: conclusions and one table per data set."""
    return (
        _environment(escape=False)
        .get_template("study.md.j2")
        .render(r=report, metrics=METRICS, names=NAMES, kinds=KINDS)
    )


def page(report: Mapping[str, Any]) -> str:
    """Return the study as one HTML file. Names and titles are escaped; only our own SVG is not."""
    drawn = {part["name"]: Markup(gains_plot(f"gains-{i}", part)) for i, part in enumerate(report["data"])}
    template = _environment(escape=True).get_template("study.html.j2")
    first = [said for said in report["conclusions"] if comes_first(said)]
    return template.render(r=report, first=first, plots=drawn, metrics=METRICS, names=NAMES, kinds=KINDS)


def gains_plot(name: str, part: Mapping[str, Any]) -> str:
    """Plot every row's gain over the baseline with its interval, in points."""
    rows = [row for row in part["rows"] if row["role"] != "baseline"]
    baseline = next(row for row in part["rows"] if row["role"] == "baseline")
    shown = [metric for metric in METRICS if metric != "log_loss"]  # its unit is another one
    series = {
        NAMES[metric]: [_ends(row["over"][baseline["name"]][metric]) for row in rows]
        for metric in shown
        if all(row["over"][baseline["name"]][metric] for row in rows)
    }
    subject = next(row for row in rows if row["subject"])
    gained = amount(subject["over"][baseline["name"]]["macro_f1"], "macro_f1")
    alt = f"Gain of every row over {baseline['title']} with its 95 % interval. {subject['title']}: macro-F1 {gained}."
    return plots.intervals(name, alt, [row["title"] for row in rows], series, f"points over {baseline['title']}")


def _ends(found: Mapping[str, float]) -> list[float]:
    return [100 * found[end] for end in ("difference", "low", "high")]


def mean_and_sd(value: Mapping[str, Any]) -> str:
    """Return e.g. `0.612 ± 0.008`, the mean alone where there is one seed, or a dash where there is none."""
    if value["mean"] is None:
        return "–"
    sd = "" if value["sd"] is None else f" ± {value['sd']:.3f}"
    return f"{value['mean']:.3f}{sd}"


def gained(over: Mapping[str, Any] | None, metric: str) -> str:
    """Return a gain as `amount` does, or a dash where there is none."""
    found = (over or {}).get(metric)
    return "–" if found is None else amount(found, metric)


def chosen(values: Mapping[str, Any]) -> str:
    """Return the tuned settings, e.g. `learning_rate 5e-05, epochs 3`."""
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _environment(escape: bool) -> Environment:
    environment = page_environment(HERE)
    environment.autoescape, environment.keep_trailing_newline = escape, True
    environment.filters |= {"mean_and_sd": mean_and_sd, "gained": gained, "chosen": chosen}
    return environment
