"""The kinds of plots of report and study, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cluster.pages.svg import DASHES, INK, SERIES, svg

MARKERS = ("o", "s", "D", "^", "v")


def curves(
    name: str, alt: str, ylabel: str, lines: Mapping[str, Sequence[tuple[float, float]]], zero: bool = False
) -> str:
    """Plot lines over optimizer steps, each given as (step, value) points; a line of few points gets markers."""

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
    """Plot a histogram of latencies in milliseconds with vertical marks, e.g. {"p50": 3.1}.

    The slowest percent is drawn into the last bin, so that one pause of the machine does not flatten the rest.
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
    """Plot one dot per row and series on an axis from 0, or a value below it, to 1; None leaves a dot out."""

    def draw(axes: Axes) -> None:
        for i, (label, values) in enumerate(series.items()):
            shown = [(v, r) for r, v in enumerate(values) if v is not None]
            if shown:
                x, y = zip(*shown, strict=True)
                axes.plot(x, y, MARKERS[i % 5], color=SERIES[i % 5], markersize=7, label=label, clip_on=False)
        least = min((v for values in series.values() for v in values if v is not None), default=0)
        axes.set_xlim(min(0, least), 1)  # agreement worse than chance is below 0
        _name_rows(axes, rows, len(series))

    return svg(name, alt, draw, (5.2, 0.9 + 0.45 * len(rows)))


def intervals(
    name: str, alt: str, rows: Sequence[str], series: Mapping[str, Sequence[Sequence[float]]], xlabel: str
) -> str:
    """Plot one dot with its interval per row and series, given as (value, low, high)."""

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=INK, linewidth=0.8)
        for i, (label, found) in enumerate(series.items()):
            places = [row + 0.75 * (i - (len(series) - 1) / 2) / len(series) for row in range(len(rows))]
            value, low, high = zip(*found, strict=True)
            axes.hlines(places, low, high, color=SERIES[i % 5], linewidth=1.6)
            axes.plot(value, places, MARKERS[i % 5], color=SERIES[i % 5], markersize=5, label=label)
        axes.set_xlabel(xlabel)
        _name_rows(axes, rows, len(series))

    return svg(name, alt, draw, (9.6, 1.1 + 0.15 * len(rows) * len(series)))


def _name_rows(axes: Axes, rows: Sequence[str], series: int) -> None:
    """Name the rows, from top to bottom, and put the legend of so many series above the plot."""
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=series, fontsize=8, columnspacing=1.0)
