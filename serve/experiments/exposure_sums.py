"""Means and variances of exposures and outcomes, taken in DuckDB, so that weeks of requests need no more memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import pandas as pd
from tea_tasting.aggr import Aggregates

from cluster.base.errors import UserError

Database = duckdb.DuckDBPyConnection
REQUESTS = "requests"
# Of several exposures of one request, the earliest counts.
ANSWERED = """
    create temp table answered as
    select request_id, count(*) as times, min_by(experiment, "at") as experiment, min_by(unit, "at") as unit,
        min_by(arm, "at") as arm, min_by(model, "at") as model, min_by(share, "at") as share
    from exposures where not shadow and "at" >= $since group by request_id
"""
STRAYED = "select count(*) from (select unit from answered group by unit having count(distinct arm) > 1)"


@dataclass(frozen=True)
class Counts:
    """Exposures with the request id of another one, outcomes without an exposure, and the models of each arm."""

    repeated: int
    unmatched: int
    models: dict[str, tuple[str, ...]]


@contextmanager
def answered(exposures: Any, outcomes: pd.DataFrame, since: datetime | None) -> Iterator[Database]:
    """Yield a database in which each answered request is a row of `answered`, and `outcomes` are beside it."""
    with duckdb.connect() as database:
        database.execute("set timezone = 'UTC'")
        database.register("exposures", exposures)
        database.register("outcomes", outcomes)
        database.execute(ANSWERED, {"since": since or datetime.fromtimestamp(0, UTC)})
        yield database


def design(database: Database) -> tuple[str, dict[str, float]]:
    """Return the experiment's name and the planned shares.

    Raises:
        UserError: nothing was answered, or the exposures are of more than one design.
    """
    names = [name for (name,) in database.sql("select distinct experiment from answered order by 1").fetchall()]
    if not names:
        raise UserError("the exposures hold no answered request: only shadow arms, or nothing at all.")
    if len(names) > 1:
        raise UserError(f"the exposures hold several experiments ({', '.join(names)}): keep a folder for each.")
    planned = database.sql("select arm, list(distinct share) from answered group by arm order by arm").fetchall()
    if changed := [arm for arm, shares in planned if len(shares) > 1]:
        raise UserError(
            f"the shares of {', '.join(changed)} changed during the experiment: report what came after by --since."
        )
    if strayed := _one(database, STRAYED):
        raise UserError(
            f"{strayed} units were answered by two arms: the salt or the shares changed during the experiment. Report"
            " what came after by --since."
        )
    return names[0], {arm: float(shares[0]) for arm, shares in planned}


def aggregates_of(database: Database, kinds: Sequence[str]) -> dict[str, Aggregates]:
    """Return by arm, over its units, the means and variances of requests and of requests with each kind of outcome."""
    columns = {REQUESTS: REQUESTS} | {f"k{n}": kind for n, kind in enumerate(kinds, 1)}
    happened = "".join(
        f", count(*) filter (request_id in (select request_id from outcomes where outcome = ${n})) as k{n}"
        for n in range(1, len(kinds) + 1)
    )
    told = "".join(f", avg({k}), var_samp({k}), covar_samp({k}, {REQUESTS})" for k in columns)
    units = f"select arm, unit, count(*) as {REQUESTS}{happened} from answered group by arm, unit"
    query = f"select arm, count(*){told} from ({units}) group by arm"
    found = {}
    for arm, count, *values in database.execute(query, list(kinds)).fetchall():
        mean, var, cov = (dict(zip(columns.values(), values[n::3], strict=True)) for n in range(3))
        found[arm] = Aggregates(count, mean, var, {(kind, REQUESTS): value for kind, value in cov.items()})
    return found


def counts_of(database: Database) -> Counts:
    """Return what the report says besides rates."""
    models = database.sql("select arm, list_sort(list(distinct model)) from answered group by arm").fetchall()
    unmatched = "select count(*) from outcomes where request_id not in (select request_id from answered)"
    return Counts(
        _one(database, "select coalesce(sum(times - 1), 0) from answered"),
        _one(database, unmatched),
        {arm: tuple(found) for arm, found in models},
    )


def _one(database: Database, query: str) -> int:
    ((value,),) = database.sql(query).fetchall()
    return int(value)
