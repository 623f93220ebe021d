"""Writes what `collect` has gathered as one page without outside files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cluster.base.whole_files import whole_file
from cluster.pages.html import page_environment
from cluster.pages.svg import DASHES, FAINT, SERIES, svg
from mpcot.records import NOT_GOLD

PAGE = "inspect.html"


def write_page(found: Mapping[str, Any], path: Path) -> Path:
    """Write the page and return its path.

    Raises:
        UserError: the disk is full, read-only or closed to this user.
    """
    with whole_file(path) as partial:
        partial.write_text(render(found), encoding="utf-8")
    return path


def render(found: Mapping[str, Any]) -> str:
    """Return the page. Texts of the data are escaped, only our own SVG is not."""
    template = page_environment(Path(__file__).parent).get_template("inspect.html.j2")
    drawn = {stage["stage"]: Markup(length_plot(stage)) for stage in found["stages"]}
    names = {label["code"]: label["name"] for label in found["scheme"]["labels"]}
    return template.render(r=found, lengths=drawn, names=names, wrong=NOT_GOLD)


def length_plot(stage: Mapping[str, Any]) -> str:
    """Return a histogram of the rationales' lengths, with an outline per perspective, or "" without any."""
    edges, rows = stage["lengths"]["edges"], stage["lengths"]["perspectives"]
    if not rows:
        return ""

    def draw(axes: Axes) -> None:
        for i, (name, row) in enumerate(rows.items()):
            axes.stairs(row["bars"], edges, label=name, color=SERIES[i % 5], linestyle=DASHES[i % 4], linewidth=1.8)
            axes.stairs(row["bars"], edges, fill=True, color=SERIES[i % 5], alpha=0.12)
        for limit in stage["limits"].values():
            if edges[0] <= limit <= edges[-1]:
                axes.axvline(limit, color=FAINT, linewidth=2.5, zorder=0)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("characters of a rationale")
        axes.set_ylabel("answers")
        axes.legend(loc="best")

    said = "; ".join(f"{name} median {row['quantiles'][2]}" for name, row in rows.items())
    return svg(f"lengths-{stage['stage']}", f"Lengths of the rationales in characters: {said}.", draw)
