"""What the pages of several packages share: the template environment and its filters, styles and macros.

A page's template includes `looks.css` and imports its macros from `parts.html.j2`, both beside this file.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def page_environment(folder: Path) -> Environment:
    """Return the environment for the templates in `folder`. It escapes texts and refuses unknown names."""
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {f.__name__: f for f in (figure, percent, signed, whole, duration)}
    return environment


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number as text, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """Return a share in percent, or a dash where there is none."""
    return "–" if value is None else f"{100 * value:.0f} %"


def signed(value: float, unit: str = " points") -> str:
    """Return a difference of shares in points with its sign; give no unit where a table's header has it."""
    return f"{100 * value:+.1f}{unit}"


def whole(value: int) -> str:
    """Return a count with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u2009")


def duration(seconds: float) -> str:
    """Return seconds as `1 h 02 min`, `3 min 05 s` or `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
