"""What an experiment found: rates per arm, lifts with intervals, and whether units were dealt to arms as planned.

Units are dealt to arms, rates are per request, and the requests of one unit resemble each other. Variances are
therefore those of a ratio of sums over units, by the delta method (Deng et al. 2018, arXiv 1803.06336, section 3.2).

Shapes: U units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chisquare, norm

from cluster.base.errors import UsageError, UserError
from serve.experiments.exposure_sums import answered, counts_of, design, sums_of_units

SRM_ALARM = 0.001
POWER = 0.8  # the share of experiments that find a lift as large as `Lift.detectable`
UNSEEN = "arms without a request"


@dataclass(frozen=True)
class Rate:
    """An outcome's rate in one arm: the share of requests that had it, and the variance of that share."""

    value: float
    variance: float
    requests: int
    units: int


@dataclass(frozen=True)
class Lift:
    """An arm's rate divided by the control's, minus 1; None where a rate is 0, so that the ratio has no interval.

    `p` is that of no lift. `detectable` is the lift that `POWER` of experiments with as many units would find. `holds`
    says whether `p` is small enough among all lifts that decide (see `analyse`).
    """

    value: float | None
    low: float | None
    high: float | None
    p: float = 1.0
    detectable: float | None = None
    holds: bool = False

    @property
    def found(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class ArmResult:
    """One arm: its models, and rates and lifts by outcome; the control has no lifts."""

    arm: str
    models: tuple[str, ...]
    units: int
    requests: int
    rates: Mapping[str, Rate]
    lifts: Mapping[str, Lift]


@dataclass(frozen=True)
class Findings:
    """The whole experiment. `ratio_p` is a chi-square test's; below `SRM_ALARM`, nothing else here can be trusted.

    `repeated` exposures have the request id of another one, of which the earliest counts.
    """

    experiment: str
    control: str
    level: float
    arms: tuple[ArmResult, ...]
    ratio_p: float
    unmatched: int
    repeated: int
    primary: str | None

    @property
    def ratio_holds(self) -> bool:
        return self.ratio_p >= SRM_ALARM


def ratio(successes: np.ndarray, requests: np.ndarray) -> Rate:
    """Return the rate of U units.

    With S and N the means of successes and requests over units, R = S / N and
    Var(R) = (Var(S) - 2 R Cov(S, N) + R^2 Var(N)) / (U N^2), sample variances.
    """
    units, mean = len(requests), requests.mean()
    value = successes.mean() / mean
    residual = successes - value * requests
    variance = residual.var(ddof=1) / (units * mean**2) if units > 1 else math.inf
    return Rate(float(value), float(variance), int(requests.sum()), units)


def lift(arm: Rate, control: Rate, level: float, tests: int = 1) -> Lift:
    """Return the lift with its interval, which is symmetric on the logarithm of the ratio.

    On that scale, a two-sided test finds (z(1 - alpha / 2) + z(power)) standard errors with this power (Bloom 1995).

    Args:
        tests: how many lifts decide; alpha is divided among them, as by the first step of Holm's correction.
    """
    if not (arm.value > 0 and control.value > 0):
        return Lift(None, None, None)
    log = math.log(arm.value / control.value)
    spread = math.sqrt(arm.variance / arm.value**2 + control.variance / control.value**2)
    reach = float(norm.ppf((1 + level) / 2)) * spread
    p = float(2 * norm.sf(abs(log) / spread)) if spread else float(log == 0)
    detectable = float(np.expm1((norm.isf((1 - level) / 2 / tests) + norm.ppf(POWER)) * spread))
    return Lift(math.expm1(log), math.expm1(log - reach), math.expm1(log + reach), p, detectable)


def holm(found: Mapping[tuple[str, str], float], alpha: float) -> set[tuple[str, str]]:
    """Return which of the tests hold if not even one false find may come in more than `alpha` of experiments.

    The smallest p-value must be at most alpha / m, the next alpha / (m - 1) and so on (Holm 1979).
    """
    holding: set[tuple[str, str]] = set()
    for rank, (name, p) in enumerate(sorted(found.items(), key=lambda item: item[1])):
        if p > alpha / (len(found) - rank):
            break
        holding.add(name)
    return holding


def sample_ratio(units: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """Return the p-value of the units per arm against the planned shares."""
    total, planned = sum(units.values()), sum(shares.values())
    expected = [total * share / planned for share in shares.values()]
    return float(chisquare([units.get(arm, 0) for arm in shares], expected).pvalue) if len(shares) > 1 else 1.0


def lifts_of(
    rates: Mapping[str, Mapping[str, Rate]], control: str, level: float, primary: str | None
) -> dict[tuple[str, str], Lift]:
    """Return the lift of each arm and outcome over the control, and whether it holds among those that decide."""
    every = [(arm, kind) for arm, own in rates.items() for kind in own if arm != control]
    deciding = [name for name in every if primary in (None, name[1])]
    lifts = {(arm, kind): lift(rates[arm][kind], rates[control][kind], level, len(deciding)) for arm, kind in every}
    holding = holm({name: lifts[name].p for name in deciding}, 1 - level)
    return {name: replace(one, holds=name in holding) for name, one in lifts.items()}


def kinds_of(outcomes: pd.DataFrame, primary: str | None) -> list[str]:
    """Return the names of the outcomes.

    Raises:
        UserError: one has the name of a column.
        UsageError: the primary outcome is none of them.
    """
    kinds = sorted(outcomes["outcome"].unique())
    if taken := sorted({"request_id", "unit", "arm", "requests"} & set(kinds)):
        raise UserError(
            f"outcome {taken[0]!r}: a column of the report has this name already. Give the outcome another name."
        )
    if primary is not None and primary not in kinds:
        raise UsageError(f"--primary {primary!r} is not an outcome; there are {', '.join(kinds)}")
    return kinds


def analyse(
    exposures: Any,
    outcomes: pd.DataFrame,
    control: str,
    level: float = 0.95,
    primary: str | None = None,
    since: datetime | None = None,
) -> Findings:
    """Join outcomes to exposures by request id and return what was found.

    Args:
        exposures: columns of `serve.experiments.exposures.EXPOSURE`, as anything that DuckDB can scan: a data frame, an
            Arrow table or data set. Shadow rows count for nothing here.
        outcomes: `request_id` and `outcome` (such as click or order), one row per event; a repeated event counts once.
        control: the arm to compare with.
        primary: the outcome that decides. Lifts in it hold if they are found among those of all arms; without it, among
            those of all arms and outcomes.
        since: exposures before this time are left out.

    Raises:
        UserError: there is no answered request, there are two experiments, shares changed, a unit is in two arms, or
            an outcome has the name of a column.
        UsageError: the control is not an arm, or the primary outcome is none.
    """
    kinds = kinds_of(outcomes, primary)
    with answered(exposures, outcomes, since) as database:
        experiment, shares = design(database)
        if control not in shares:
            raise UsageError(f"--control {control!r} is not an arm; there are {', '.join(shares)}")
        sums, counts = sums_of_units(database, kinds), counts_of(database)
    rates = {
        arm: {kind: ratio(own[kind].to_numpy(float), own["requests"].to_numpy(float)) for kind in kinds}
        for arm, own in sums.groupby("arm")
    }
    lifts = lifts_of(rates, control, level, primary)
    arms = []
    for arm in sorted(rates, key=lambda name: (name != control, name)):
        own = sums[sums["arm"] == arm]
        mine = {kind: one for (of, kind), one in lifts.items() if of == arm}
        arms.append(ArmResult(arm, counts.models[arm], len(own), int(own["requests"].sum()), rates[arm], mine))
    # The shares of all arms that answer add up to 1, so an arm that was never seen was dealt wrongly too.
    unseen = 1 - sum(shares.values())
    planned = shares | ({UNSEEN: unseen} if unseen > 1e-6 else {})
    p = sample_ratio({result.arm: result.units for result in arms}, planned)
    return Findings(experiment, control, level, tuple(arms), p, counts.unmatched, counts.repeated, primary)
