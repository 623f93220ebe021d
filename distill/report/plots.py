"""The report's kinds of plots, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cluster.pages.svg import DASHES, INK, SERIES, svg


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


def intervals(
    name: str, alt: str, rows: Sequence[str], series: Mapping[str, Sequence[Sequence[float]]], xlabel: str
) -> str:
    """One dot with its interval per row and series, given as (value, low, high); rows from top to bottom."""
    markers = ("o", "s", "D", "^", "v")

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=INK, linewidth=0.8)
        for i, (label, found) in enumerate(series.items()):
            places = [row + 0.16 * (i - (len(series) - 1) / 2) * 2 for row in range(len(rows))]
            value, low, high = zip(*found, strict=True)
            axes.hlines(places, low, high, color=SERIES[i % 5], linewidth=1.6)
            axes.plot(value, places, markers[i % 5], color=SERIES[i % 5], markersize=5, label=label)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(xlabel)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(series), fontsize=8, columnspacing=1.0)

    return svg(name, alt, draw, (6.4, 1.1 + 0.42 * len(rows)))
