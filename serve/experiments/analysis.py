"""What an experiment found: rates per arm, lifts with intervals, and whether units were dealt to arms as planned.

Units are dealt to arms, rates are per request, and the requests of one unit resemble each other. Variances are
therefore those of a ratio of means over units, by the delta method (Deng et al. 2018, arXiv 1803.06336, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pandas as pd
from scipy.stats import chisquare
from tea_tasting.aggr import Aggregates
from tea_tasting.experiment import ExperimentResult
from tea_tasting.metrics import RatioOfMeans
from tea_tasting.multiplicity import adjust_fwer

from cluster.base.errors import UsageError, UserError
from serve.experiments.exposure_sums import REQUESTS, aggregates_of, answered, counts_of, design

SRM_ALARM = 0.001
POWER = 0.8  # the share of experiments that find a lift as large as `Lift.detectable`
UNSEEN = "arms without a request"


@dataclass(frozen=True)
class Lift:
    """An arm's rate divided by the control's, minus 1; None where nothing can be said (see `lift`).

    `p` is that of no difference. `detectable` is the lift that `POWER` of experiments with as many units would find.
    `holds` says whether `p` is small enough among all lifts that decide (see `analyse`).
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
    """One arm: its models, and rates per request and lifts by outcome; the control has no lifts."""

    arm: str
    models: tuple[str, ...]
    units: int
    requests: int
    rates: Mapping[str, float]
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


def lift(kind: str, arm: Aggregates, control: Aggregates, level: float) -> Lift:
    """Return the lift of an arm in one outcome, with its interval, which is symmetric on the logarithm of the ratio.

    There is none where an arm has one unit, where a rate is 0, or where all units are alike.

    Args:
        arm, control: means and variances over units of `kind` and of `REQUESTS`.
    """
    sides = (arm, control)
    if any(side.count() < 2 or side.mean(kind) == 0 for side in sides):
        return Lift(None, None, None)
    if not any(side.ratio_var(kind, REQUESTS) > 0 for side in sides):
        return Lift(None, None, None)
    found = RatioOfMeans(kind, REQUESTS, confidence_level=level).analyze_aggregates(control, arm)
    interval = found.rel_effect_size_ci_lower, found.rel_effect_size_ci_upper
    return Lift(found.rel_effect_size, *interval, found.pvalue)


def detectable(kind: str, arm: Aggregates, control: Aggregates, alpha: float) -> float:
    """Return the lift that `POWER` of experiments with as many units would find at this alpha."""
    metric = RatioOfMeans(kind, REQUESTS, alpha=alpha, power=POWER, ratio=arm.count() / control.count())
    (found,) = metric.solve_power_from_aggregates(arm + control, "rel_effect_size")
    return found.rel_effect_size


def holding(found: Mapping[tuple[str, str], float], alpha: float) -> set[tuple[str, str]]:
    """Return which p-values hold, if not even one false find may come in more than `alpha` of experiments.

    This is Holm's correction (Holm 1979).
    """
    tests = {name: ExperimentResult({"lift": {"pvalue": p}}) for name, p in found.items()}
    corrected = adjust_fwer(tests, alpha=alpha, arbitrary_dependence=True, method="bonferroni")
    return {name for name, one in corrected.items() if one["lift"]["null_rejected"]}


def sample_ratio(units: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """Return the p-value of the units per arm against the planned shares."""
    total, planned = sum(units.values()), sum(shares.values())
    expected = [total * share / planned for share in shares.values()]
    return float(chisquare([units.get(arm, 0) for arm in shares], expected).pvalue) if len(shares) > 1 else 1.0


def lifts_of(
    arms: Mapping[str, Aggregates], kinds: Sequence[str], control: str, level: float, primary: str | None
) -> dict[tuple[str, str], Lift]:
    """Return the lift of each arm and outcome over the control, and whether it holds among those that decide.

    The detectable lift is that of the first step of Holm's correction, which divides alpha among all that decide.
    """
    compared = [(arm, kind) for arm in arms if arm != control for kind in kinds]
    lifts = {(arm, kind): lift(kind, arms[arm], arms[control], level) for arm, kind in compared}
    deciding = {name: lifts[name].p for name in compared if primary in (None, name[1])}
    held = holding(deciding, 1 - level) if deciding else set()
    for (arm, kind), one in lifts.items():
        if one.value is not None:
            size = detectable(kind, arms[arm], arms[control], (1 - level) / len(deciding))
            lifts[arm, kind] = replace(one, detectable=size, holds=(arm, kind) in held)
    return lifts


def kinds_of(outcomes: pd.DataFrame, primary: str | None) -> list[str]:
    """Return the names of the outcomes.

    Raises:
        UserError: one has the name of a column.
        UsageError: the primary outcome is none of them.
    """
    kinds = sorted(outcomes["outcome"].unique())
    if taken := sorted({"request_id", "unit", "arm", REQUESTS} & set(kinds)):
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
        arms, counts = aggregates_of(database, kinds), counts_of(database)
    lifts = lifts_of(arms, kinds, control, level, primary)
    results = []
    for arm in sorted(arms, key=lambda name: (name != control, name)):
        own = arms[arm]
        rates = {kind: own.mean(kind) / own.mean(REQUESTS) for kind in kinds}
        mine = {kind: one for (of, kind), one in lifts.items() if of == arm}
        requests = round(own.count() * own.mean(REQUESTS))
        results.append(ArmResult(arm, counts.models[arm], own.count(), requests, rates, mine))
    # The shares of all arms that answer add up to 1, so an arm that was never seen was dealt wrongly too.
    unseen = 1 - sum(shares.values())
    planned = shares | ({UNSEEN: unseen} if unseen > 1e-6 else {})
    p = sample_ratio({result.arm: result.units for result in results}, planned)
    return Findings(experiment, control, level, tuple(results), p, counts.unmatched, counts.repeated, primary)
