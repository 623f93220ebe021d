"""Plots as inline SVG, in which text stays text and colours are CSS variables, to follow light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Matplotlib needs real colours. These stand for CSS variables of the page, which replace them in the SVG.
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
        name: unique on the page, to keep the element ids of two plots apart.
        alt: what a reader who cannot see the plot should learn from it.
        size: in inches; text has 9 pt at the natural size.
    """
    with mpl.rc_context(cast(Any, STYLE | {"svg.hashsalt": name})):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return page_svg(file.getvalue(), name, alt)


def page_svg(text: str, name: str, alt: str) -> str:
    """Turn Matplotlib's SVG document into an element of a page, without a fixed size, with a title and CSS colours."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    viewbox = re.search(r'viewBox="[^"]+"', text)
    assert viewbox is not None, "Matplotlib's SVG has a viewBox"
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {viewbox[0]} role="img" aria-labelledby="{name}-alt">'
    text = re.sub(r"<svg[^>]*>", f'{head}<title id="{name}-alt">{escape(alt, quote=False)}</title>', text, count=1)
    # Groups are called figure_1, axes_1, ... in every plot. Ids must be unique on a page, and nothing refers to these.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text
