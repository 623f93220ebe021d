"""Plots as inline SVG: text stays text, colours are CSS variables so that they follow light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Point = Mapping[str, float]

# Matplotlib needs real colours; these stand for the page's CSS variables and are replaced in the SVG.
INK, FAINT = "#010203", "#010204"
SERIES = ("#010211", "#010212", "#010213", "#010214", "#010215")
VARIABLES = {INK: "var(--ink)", FAINT: "var(--line)"} | {c: f"var(--s{i})" for i, c in enumerate(SERIES, 1)}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
DASHES = ("-", "--", ":", "-.")


def svg(name: str, alt: str, draw: Callable[[Axes], None], size: tuple[float, float] = (5.2, 2.9)) -> str:
    """Draw on one axes and return an `<svg>` element that scales with its container.

    Args:
        name: unique on the page; keeps the element ids of two plots apart.
        alt: what a reader who cannot see the plot should learn from it.
        size: inches; text is 9 pt at the natural size.
    """
    with mpl.rc_context(cast(Any, STYLE | {"svg.hashsalt": name})):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return page_svg(file.getvalue(), name, alt)


def page_svg(text: str, name: str, alt: str) -> str:
    """Make Matplotlib's SVG document an element of a page: no fixed size, a title, CSS colours."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    viewbox = re.search(r'viewBox="[^"]+"', text)
    assert viewbox is not None, "Matplotlib's SVG has a viewBox"
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {viewbox[0]} role="img" aria-labelledby="{name}-alt">'
    text = re.sub(r"<svg[^>]*>", f'{head}<title id="{name}-alt">{escape(alt)}</title>', text, count=1)
    # Groups are called figure_1, axes_1, ... in every plot; ids must be unique on the page and nothing refers to these.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text


def escape(text: str) -> str:
    """Escape text for XML content."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def curves(
    name: str, alt: str, ylabel: str, lines: Mapping[str, Sequence[tuple[float, float]]], zero: bool = False
) -> str:
    """Lines over optimizer steps, each given as (step, value) points.

    A line of few points gets markers, so that three dev values are seen as three values.
    """

    def draw(axes: Axes) -> None:
        for i, (label, points) in enumerate(lines.items()):
            x, y = zip(*points, strict=True)
            marker = "o" if len(points) <= 12 else None
            axes.plot(x, y, DASHES[i % 4], color=SERIES[i % 5], marker=marker, markersize=3.5, label=label)
        if zero:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(ylabel)
        axes.legend(loc="best")

    return svg(name, alt, draw)


def histogram(name: str, alt: str, values_ms: Sequence[float], marks: Mapping[str, float]) -> str:
    """Histogram of latencies in milliseconds with vertical marks, e.g. {"p50": 3.1}.

    The slowest percent is drawn into the last bin: one pause of the machine must not flatten the rest.
    """
    ordered = sorted(values_ms)
    top = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]

    def draw(axes: Axes) -> None:
        axes.hist([min(v, top) for v in ordered], bins=30, color=SERIES[0])
        for i, (label, value) in enumerate(marks.items(), 1):
            shown = f"{label} {value:.1f} ms"
            axes.axvline(min(value, top), color=SERIES[i % 5], linestyle=DASHES[i % 4], label=shown)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("milliseconds for one pair")
        axes.set_ylabel("pairs timed")
        axes.legend(loc="best")

    return svg(name, alt, draw)


def dots(name: str, alt: str, rows: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> str:
    """One dot per row and series on a 0 to 1 axis; rows from top to bottom, None leaves a dot out."""
    markers = ("o", "s", "D", "^", "v")

    def draw(axes: Axes) -> None:
        for i, (label, values) in enumerate(series.items()):
            shown = [(v, r) for r, v in enumerate(values) if v is not None]
            if shown:
                x, y = zip(*shown, strict=True)
                axes.plot(x, y, markers[i % 5], color=SERIES[i % 5], markersize=7, label=label, clip_on=False)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(series), fontsize=8, columnspacing=1.0)

    return svg(name, alt, draw, (5.2, 0.9 + 0.45 * len(rows)))
