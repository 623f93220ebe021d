"""What an experiment found: rates per arm, lifts with intervals, and whether units were dealt to arms as planned.

Units are dealt to arms, rates are per request, and the requests of one unit resemble each other. Variances are
therefore those of a ratio of sums over units, by the delta method (Deng et al. 2018, arXiv 1803.06336, section 3.2).

Shapes: U units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import chisquare, norm

from cluster.base.errors import UsageError, UserError

SRM_ALARM = 0.001
READ = ("experiment", "request_id", "unit", "arm", "share", "shadow")  # columns of the exposures
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
    """An arm's rate divided by the control's, minus 1; None where a rate is 0, so that the ratio has no interval."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def found(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class ArmResult:
    """One arm: rates and lifts by outcome; the control has no lifts."""

    arm: str
    units: int
    requests: int
    rates: Mapping[str, Rate]
    lifts: Mapping[str, Lift]


@dataclass(frozen=True)
class Findings:
    """The whole experiment. `ratio_p` is a chi-square test's; below `SRM_ALARM`, nothing else here can be trusted."""

    experiment: str
    control: str
    level: float
    arms: tuple[ArmResult, ...]
    ratio_p: float
    unmatched: int

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


def lift(arm: Rate, control: Rate, level: float) -> Lift:
    """Return the lift with its interval, which is symmetric on the logarithm of the ratio."""
    if not (arm.value > 0 and control.value > 0):
        return Lift(None, None, None)
    log = math.log(arm.value / control.value)
    spread = math.sqrt(arm.variance / arm.value**2 + control.variance / control.value**2)
    reach = float(norm.ppf((1 + level) / 2)) * spread
    return Lift(math.expm1(log), math.expm1(log - reach), math.expm1(log + reach))


def sample_ratio(units: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """Return the p-value of the units per arm against the planned shares."""
    total, planned = sum(units.values()), sum(shares.values())
    expected = [total * share / planned for share in shares.values()]
    return float(chisquare([units.get(arm, 0) for arm in shares], expected).pvalue) if len(shares) > 1 else 1.0


def analyse(exposures: pd.DataFrame, outcomes: pd.DataFrame, control: str, level: float = 0.95) -> Findings:
    """Join outcomes to exposures by request id and return what was found.

    Args:
        exposures: columns of `serve.experiments.exposures.EXPOSURE`; shadow rows count for nothing here.
        outcomes: `request_id` and `outcome` (such as click or order), one row per event; a repeated event counts once.
        control: the arm to compare with.

    Raises:
        UserError: there is no answered request, there are two experiments, shares changed, a unit is in two arms, or
            an outcome has the name of a column.
        UsageError: the control is not an arm.
    """
    shown = exposures[~exposures["shadow"]].drop_duplicates("request_id")
    experiment, shares = _design(shown)
    if control not in shares:
        raise UsageError(f"--control {control!r} is not an arm; there are {', '.join(shares)}")
    kinds = sorted(outcomes["outcome"].unique())
    if taken := sorted({"request_id", "unit", "arm", "requests"} & set(kinds)):
        raise UserError(
            f"outcome {taken[0]!r}: a column of the report has this name already. Give the outcome another name."
        )
    happened = pd.crosstab(outcomes["request_id"], outcomes["outcome"]).clip(upper=1)
    joined = shown[["request_id", "unit", "arm"]].join(happened, on="request_id").fillna(dict.fromkeys(kinds, 0))
    sums = joined.assign(requests=1).groupby(["arm", "unit"])[["requests", *kinds]].sum()
    rates = {
        arm: {kind: ratio(own[kind].to_numpy(float), own["requests"].to_numpy(float)) for kind in kinds}
        for arm, own in sums.groupby(level="arm")
    }
    arms = []
    for arm in sorted(rates, key=lambda name: (name != control, name)):
        own = sums.loc[arm]
        lifts = {} if arm == control else {kind: lift(rates[arm][kind], rates[control][kind], level) for kind in kinds}
        arms.append(ArmResult(arm, len(own), int(own["requests"].sum()), rates[arm], lifts))
    # The shares of all arms that answer add up to 1, so an arm that was never seen was dealt wrongly too.
    unseen = 1 - sum(shares.values())
    planned = shares | ({UNSEEN: unseen} if unseen > 1e-6 else {})
    p = sample_ratio({result.arm: result.units for result in arms}, planned)
    unmatched = int((~outcomes["request_id"].isin(shown["request_id"])).sum())
    return Findings(experiment, control, level, tuple(arms), p, unmatched)


def _design(shown: pd.DataFrame) -> tuple[str, dict[str, float]]:
    """Return the experiment's name and the planned shares, and refuse exposures of more than one design."""
    if shown.empty:
        raise UserError("the exposures hold no answered request: only shadow arms, or nothing at all.")
    names = sorted(shown["experiment"].unique())
    if len(names) > 1:
        raise UserError(f"the exposures hold several experiments ({', '.join(names)}): keep a folder for each.")
    planned = shown.groupby("arm")["share"].unique()
    changed = [arm for arm, found in planned.items() if len(found) > 1]
    if changed:
        raise UserError(f"the shares of {', '.join(changed)} changed during the experiment: report each part alone.")
    strayed = int((shown.groupby("unit")["arm"].nunique() > 1).sum())
    if strayed:
        raise UserError(
            f"{strayed} units were answered by two arms: the salt or the shares changed during the experiment."
        )
    return names[0], {str(arm): float(found[0]) for arm, found in planned.items()}
