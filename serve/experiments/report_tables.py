"""The report of an experiment: tables for the terminal, and a plot of the lifts."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from rich.table import Table

from cluster.base.errors import UserError
from cluster.base.progress import console
from cluster.base.whole_files import whole_file
from serve.experiments.analysis import POWER, SRM_ALARM, Findings, Lift, analyse
from serve.experiments.exposures import open_exposures
from serve.parts.part_log import undisturbed

READERS = {
    ".parquet": pd.read_parquet,
    ".csv": lambda path: pd.read_csv(path, dtype=str),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False, convert_dates=False),
}


def read_outcomes(path: Path) -> pd.DataFrame:
    """Return `request_id` and `outcome` of a parquet, csv or jsonl file, without the rows that lack either of them.

    Raises:
        UserError: there is no such file, it is of another kind, a column is missing, or there is no row.
    """
    if not path.is_file() or path.suffix not in READERS:
        raise UserError(f"{path} is not a file of outcomes: give a {', '.join(READERS)} file")
    try:
        table = READERS[path.suffix](path)
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    missing = [name for name in ("request_id", "outcome") if name not in table]
    if missing or table.empty:
        wrong = f"no column {', '.join(missing)}" if missing else "no row"
        raise UserError(f"{path}: {wrong}. It needs request_id and outcome.")
    return table[["request_id", "outcome"]].dropna().astype(str)


def report_experiment(
    exposures: Path,
    outcomes: Path,
    plot: Path,
    control: str,
    level: float = 0.95,
    primary: str | None = None,
    since: datetime | None = None,
) -> Findings:
    """Print rates, lifts and the sample-ratio check, write the plot, and return the findings.

    Raises:
        UserError: as `open_exposures`, `read_outcomes` and `analyse`.
    """
    if since is not None and since.tzinfo is None:
        since = since.replace(tzinfo=UTC)
    told = read_outcomes(outcomes)
    found = undisturbed(lambda: analyse(open_exposures(exposures, since), told, control, level, primary, since))
    console().print(table_of(found))
    verdict = (
        "as planned" if found.ratio_holds else f"NOT as planned (p < {SRM_ALARM:g}): repair this before you read on"
    )
    console().print(f"sample ratio: p = {found.ratio_p:.3g}, {verdict}", highlight=False)
    if found.unmatched:
        console().print(f"{found.unmatched:,} outcomes belong to no exposure and were ignored", highlight=False)
    if found.repeated:
        said = f"{found.repeated:,} exposures repeat the id of a request, of which the earliest counts"
        console().print(said, highlight=False)
    console().print(how_to_read(found), highlight=False)
    if said := how_large(found):
        console().print(said, highlight=False)
    write_plot(found, plot)
    console().print(f"plot: {plot}", highlight=False)
    return found


def how_to_read(found: Findings) -> str:
    """Return what the bold figures mean, and when they do not."""
    among = f"the lifts in {found.primary}" if found.primary else "all lifts; name one outcome by --primary to decide"
    return (
        f"Bold lifts hold among {among} (Holm's correction at {1 - found.level:.3g}). All of this is meant for one look"
        " at the end: looking each day and stopping at the first bold figure finds lifts that are not there."
    )


def how_large(found: Findings) -> str:
    """Return how large a lift must be to be found, by outcome that decides; empty where nothing can be compared."""
    lifts = [each for arm in found.arms for each in arm.lifts.items() if found.primary in (None, each[0])]
    sizes = sorted((each.detectable or 0.0, kind) for kind, each in lifts)
    largest = {kind: size for size, kind in sizes if 0 < size < math.inf}
    said = ", ".join(f"{size:+.1%} in {kind}" for kind, size in largest.items())
    return said and (
        f"{100 * POWER:g} % of experiments of this size find a lift of {said}. For one half as large, let it run until"
        " there are about four times as many units."
    )


def table_of(found: Findings) -> Table:
    """Return a table with one row per arm."""
    kinds = list(found.arms[0].rates)
    heads = [head for kind in kinds for head in (kind, f"lift of {kind}")]
    table = Table(
        "arm", "model", "units", "requests", *heads, title=f"{found.experiment}, {100 * found.level:g} % intervals"
    )
    for arm in found.arms:
        cells = [text for kind in kinds for text in (f"{arm.rates[kind]:.3%}", lift_text(arm.lifts.get(kind)))]
        table.add_row(arm.arm, ", ".join(arm.models), f"{arm.units:,}", f"{arm.requests:,}", *cells)
    return table


def lift_text(found: Lift | None) -> str:
    """Return a lift with its interval, in bold where it holds among all that decide."""
    if found is None:
        return "control"
    if found.value is None or found.low is None or found.high is None:
        return "nothing to compare"
    text = f"{found.value:+.1%} ({found.low:+.1%} to {found.high:+.1%})"
    return f"[bold]{text}[/bold]" if found.holds else text


def write_plot(found: Findings, path: Path) -> None:
    """Write a plot of every lift with its interval, as svg, png or pdf by the suffix of the path.

    Raises:
        UserError: the suffix is none of these, or the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if path.suffix not in (".svg", ".png", ".pdf"):
        raise UserError(f"--plot {path}: give a name that ends in .svg, .png or .pdf")
    rows = [(f"{arm.arm}: {kind}", each) for arm in found.arms for kind, each in arm.lifts.items()]
    figure = Figure(figsize=(6.4, 1.2 + 0.45 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="0.6", linewidth=1)
    for place, (_, each) in enumerate(rows):
        if each.value is not None and each.low is not None and each.high is not None:
            reach = [[100 * (each.value - each.low)], [100 * (each.high - each.value)]]
            axes.errorbar(100 * each.value, place, xerr=reach, fmt="o", capsize=3, color="C0" if each.holds else "0.4")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"lift over {found.control} in %, {100 * found.level:g} % interval")
    axes.set_title(f"{found.experiment}{'' if found.ratio_holds else ' (sample ratio is off)'}")
    with whole_file(path) as partial, rc_context({"svg.fonttype": "none"}):  # keeps text as text
        figure.savefig(partial, format=path.suffix[1:])
