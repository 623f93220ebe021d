"""A report that finds a lift where there is one, and says where arms were not dealt as planned."""

from __future__ import annotations

import math
import re
from contextlib import closing
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, norm
from tea_tasting.aggr import Aggregates

from cluster.base.errors import UserError
from serve.experiments.analysis import analyse, detectable, holding, lift, sample_ratio
from serve.experiments.assign import assign
from serve.experiments.config import ExperimentSettings
from serve.experiments.exposure_sums import REQUESTS, aggregates_of, answered
from serve.experiments.exposures import ExposureLog, read_exposures
from serve.experiments.report_tables import read_outcomes
from tests.helpers.command import broadfast, text
from tests.helpers.experiment_arms import ARMS, units


def aggregates(clicks: np.ndarray, requests: np.ndarray) -> Aggregates:
    """Return what `aggregates_of` returns of one arm with these requests per unit, and with clicks on so many."""
    covariance = np.cov(clicks, requests)
    mean = {"click": clicks.mean(), REQUESTS: requests.mean()}
    var = {"click": covariance[0, 0], REQUESTS: covariance[1, 1]}
    return Aggregates(len(clicks), mean, var, {("click", REQUESTS): covariance[0, 1]})


def binomial(rate: float, units: int) -> Aggregates:
    """Return an arm of one request per unit."""
    clicks = np.arange(units) < rate * units
    return aggregates(clicks.astype(float), np.ones(units))


def test_what_duckdb_sums_up_is_the_variance_over_units() -> None:
    draw = np.random.default_rng(3)
    requests = 1 + draw.poisson(3, 200)
    clicks = draw.binomial(requests, 0.3)
    names = [(f"{n}/{k}", f"u{n}", k < clicks[n]) for n in range(200) for k in range(requests[n])]
    rows = [{"request_id": r, "unit": u, "arm": "a", "model": "m", "experiment": "e", "share": 1.0, "shadow": False,
             "at": pd.Timestamp("2026-01-01", tz="UTC")} for r, u, _ in names]  # fmt: skip
    outcomes = pd.DataFrame([(r, "click") for r, _, happened in names if happened], columns=["request_id", "outcome"])
    with answered(pd.DataFrame(rows), outcomes, None) as database:
        found = aggregates_of(database, ["click"])["a"]
        assert aggregates_of(database, [])["a"].mean(REQUESTS) == found.mean(REQUESTS)
    wanted = aggregates(clicks.astype(float), requests.astype(float))
    assert found.count() == 200 and found.mean("click") == pytest.approx(wanted.mean("click"))
    assert found.ratio_var("click", REQUESTS) == pytest.approx(wanted.ratio_var("click", REQUESTS))


def test_lift_by_hand_and_where_there_is_none_to_have() -> None:
    arm, control = binomial(0.12, 10_000), binomial(0.1, 10_000)
    found = lift("click", arm, control, 0.95)
    spread = math.sqrt(0.88 / 0.12 / 9999 + 0.9 / 0.1 / 9999)  # of the logarithm; the delta method's
    low, high = (1.2 * math.exp(sign * 1.959964 * spread) - 1 for sign in (-1, 1))
    assert found.value == pytest.approx(0.2) and (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert found.p == pytest.approx(2 * norm.sf(0.02 / math.sqrt((0.12 * 0.88 + 0.1 * 0.9) / 9999)), rel=0.01)
    # z(0.8) = 0.841621, and z(1 - 0.05 / 2 / 3) = 2.393980; the rate of both arms together is 0.11
    step = math.sqrt(2 * 0.11 * 0.89 / 9999) / 0.11
    assert detectable("click", arm, control, 0.05) == pytest.approx((1.959964 + 0.841621) * step, rel=0.001)
    assert detectable("click", arm, control, 0.05 / 3) == pytest.approx((2.393980 + 0.841621) * step, rel=0.001)
    one_unit = Aggregates(1, {"click": 1.0, REQUESTS: 1.0}, {"click": None, REQUESTS: None})
    for nothing in (binomial(0, 100), one_unit):
        assert astuple(lift("click", nothing, control, 0.95))[:5] == (None, None, None, 1.0, None)
    assert lift("click", binomial(1, 100), binomial(1, 100), 0.95).value is None, "nothing varies"


def test_the_sample_ratio_is_a_chi_square_test_on_units() -> None:
    # (5100 - 5000)^2 / 5000 twice: 4 with one degree of freedom
    assert sample_ratio({"a": 5100, "b": 4900}, {"a": 0.5, "b": 0.5}) == pytest.approx(0.0455, abs=1e-4)
    assert sample_ratio({"a": 6000, "b": 4000}, {"a": 0.5, "b": 0.5}) < 1e-12
    assert sample_ratio({"a": 6000}, {"a": 0.6, "b": 0.4}) < 1e-12  # an arm that nobody was sent to


def simulated(draw: np.random.Generator, count: int, rate: float) -> Aggregates:
    """Return an arm where each unit has its own propensity to click and its own number of requests."""
    requests = 1 + draw.poisson(3, count)
    propensity = draw.beta(20 * rate, 20 * (1 - rate), count)
    return aggregates(draw.binomial(requests, propensity).astype(float), requests.astype(float))


def test_the_lift_that_is_called_detectable_is_found_in_four_of_five_experiments() -> None:
    draw, runs = np.random.default_rng(9), 400
    size = detectable("click", simulated(draw, 2000, 0.2), simulated(draw, 2000, 0.2), 0.05)
    arms = ((simulated(draw, 2000, 0.2 * (1 + size)), simulated(draw, 2000, 0.2)) for _ in range(runs))
    found = sum(lift("click", *pair, 0.95).found for pair in arms)
    low, high = binom.ppf([0.001, 0.999], runs, 0.8)
    assert low <= found <= high


def test_requests_of_one_unit_are_not_taken_for_so_many_units() -> None:
    """Intervals that count requests as independent would find a lift in far more than one in twenty."""
    draw, runs, found, naive = np.random.default_rng(6), 300, 0, 0
    for _ in range(runs):
        pair = []
        for _arm in range(2):
            requests = np.full(200, 20.0)
            pair.append(aggregates(draw.binomial(20, draw.beta(1, 4, 200)).astype(float), requests))
        found += lift("click", *pair, 0.95).found
        alone = [binomial(p.mean("click") / p.mean(REQUESTS), 4000) for p in pair]
        naive += lift("click", *alone, 0.95).found
    assert found <= binom.ppf(0.999, runs, 0.05)
    assert naive > 3 * binom.ppf(0.999, runs, 0.05)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 shoppers through the log itself; the arm `new` sells 40 % more, and `dark` looks on."""
    folder = tmp_path_factory.mktemp("experiment")
    draw, clicks, orders = np.random.default_rng(7), [], []
    experiment = ExperimentSettings(name="spring", arms=(ARMS[0].model_copy(update={"share": 0.5}),
        ARMS[1].model_copy(update={"share": 0.5}), ARMS[3]), flush_rows=2000)  # fmt: skip
    with closing(ExposureLog(folder / "exposures", experiment)) as log:
        for unit in units(3000):
            arm = assign(experiment, unit)
            for visit in range(1 + draw.poisson(1)):
                request = f"{unit}/{visit}"
                log.append(request, unit, arm, model=f"{arm.name}@1")
                log.append(request, unit, ARMS[3], model="dark@1")
                if draw.random() < (0.28 if arm.name == "new" else 0.2):
                    clicks += [request, request]  # clicked twice
                if draw.random() < 0.05:
                    orders.append(request)
    rows = [(r, "click") for r in clicks] + [(r, "order") for r in orders] + [("elsewhere", "click")]
    pd.DataFrame(rows, columns=["request_id", "outcome"]).to_csv(folder / "outcomes.csv", index=False)
    return folder


def test_the_command_finds_the_lift_and_draws_it(finished: Path) -> None:
    plot = finished / "lift.svg"
    result = broadfast("experiment", "report", finished / "exposures", finished / "outcomes.csv", "--plot", plot)
    said = text(result)
    assert result.exit_code == 0, said
    assert "sample ratio" in said and "as planned" in said and "NOT" not in said
    assert "1 outcomes belong to no exposure" in said
    assert "new: click" in plot.read_text(encoding="utf-8")
    found = analysed(finished)
    control, new = found.arms
    assert (control.arm, new.arm) == ("control", "new")
    assert new.lifts["click"].found and new.lifts["click"].low < 0.4 < new.lifts["click"].high
    assert not new.lifts["order"].found
    assert control.requests + new.requests == read_exposures(finished / "exposures").num_rows / 2


def analysed(folder: Path):
    outcomes = pd.read_csv(folder / "outcomes.csv")
    return analyse(read_exposures(folder / "exposures").to_pandas(), outcomes, "control")


def test_an_arm_without_a_single_request_is_called_out(finished: Path) -> None:
    shown = read_exposures(finished / "exposures").to_pandas()
    outcomes = pd.read_csv(finished / "outcomes.csv")
    found = analyse(shown[shown["arm"] == "control"], outcomes, "control")
    assert [arm.arm for arm in found.arms] == ["control"] and not found.ratio_holds


def test_arms_that_lost_units_are_called_out(finished: Path) -> None:
    shown = read_exposures(finished / "exposures").to_pandas()
    lost = shown[(shown["arm"] != "new") | (shown["unit"].str[0] < "c")]
    lost.to_parquet(finished / "lost.parquet")
    files = finished / "lost.parquet", finished / "outcomes.csv"
    result = broadfast("experiment", "report", *files, "--plot", finished / "p.png")
    assert result.exit_code == 0 and "NOT as planned" in text(result), text(result)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda e: e.assign(shadow=True), "no answered request"),
        (lambda e: e.assign(experiment=np.where(e.index % 4 < 2, "a", "b")), "several experiments"),
        (lambda e: e.assign(share=np.where(e.index % 3, 0.5, 0.4)), "shares of control, new changed"),
        (lambda e: e.assign(unit="one"), "1 units were answered by two arms"),
    ],
)
def test_exposures_that_are_not_one_design_are_refused(finished: Path, spoil, words: str) -> None:
    shown = read_exposures(finished / "exposures").to_pandas()
    with pytest.raises(UserError, match=words):
        analyse(spoil(shown), pd.DataFrame({"request_id": ["a"], "outcome": ["click"]}), "control")


def test_a_file_of_all_requests_may_leave_the_outcome_empty(finished: Path) -> None:
    path = finished / "all.csv"
    shown = read_exposures(finished / "exposures").to_pandas().drop_duplicates("request_id")
    rows = shown[["request_id"]].merge(pd.read_csv(finished / "outcomes.csv"), how="left")
    assert rows["outcome"].isna().any()
    rows.to_csv(path, index=False)
    result = broadfast("experiment", "report", finished / "exposures", path, "--plot", finished / "all.svg")
    assert result.exit_code == 0, text(result)
    assert len(read_outcomes(path)) == rows["outcome"].notna().sum()


@pytest.mark.parametrize("name", ["unit", "requests"])
def test_an_outcome_that_is_named_as_a_column_is_refused(finished: Path, name: str) -> None:
    shown = read_exposures(finished / "exposures").to_pandas()
    with pytest.raises(UserError, match=f"outcome '{name}': a column of the report has this name"):
        analyse(shown, pd.DataFrame({"request_id": ["a"], "outcome": [name]}), "control")


def test_files_that_are_something_else_are_refused(finished: Path) -> None:
    shown, csv = finished / "exposures", finished / "outcomes.csv"
    (finished / "empty").mkdir()
    (finished / "bad.csv").write_text("a,b\n1,2\n")
    for words, said in (
        ((finished / "empty", csv), "no parquet part is there"),
        ((shown, finished / "none.csv"), "is not a file of outcomes"),
        ((shown, finished / "bad.csv"), "no column request_id, outcome"),
        ((shown, csv, "--plot", finished / "plot.txt"), "ends in .svg"),
    ):
        result = broadfast("experiment", "report", *words)
        assert result.exit_code == 1 and said in text(result), text(result)
    assert broadfast("experiment", "report", shown, csv, "--control", "old").exit_code == 2


def test_holm_by_hand() -> None:
    # 0.01 <= 0.05 / 3 and 0.024 <= 0.05 / 2, but 0.06 > 0.05
    tests = {("a", "x"): 0.024, ("b", "x"): 0.01, ("c", "x"): 0.06}
    assert holding(tests, 0.05) == {("a", "x"), ("b", "x")}
    assert holding({("a", "x"): 0.04, ("b", "x"): 0.03}, 0.05) == set()


def test_an_experiment_without_a_difference_finds_one_in_one_of_twenty() -> None:
    """Three arms beside a control and three outcomes: without a correction it is more than one in four."""
    draw, runs, held, naive = np.random.default_rng(8), 400, 0, 0
    for _ in range(runs):
        p = {}
        for outcome in "xyz":
            control, *arms = (simulated(draw, 500, 0.2) for _ in range(4))
            p |= {(str(n), outcome): lift("click", arm, control, 0.95).p for n, arm in enumerate(arms)}
        held += bool(holding(p, 0.05))
        naive += min(p.values()) < 0.05
    assert held <= binom.ppf(0.999, runs, 0.05) < naive


def test_one_outcome_decides_where_it_is_named(finished: Path) -> None:
    outcomes = pd.read_csv(finished / "outcomes.csv")
    shown = read_exposures(finished / "exposures")
    for primary, held in ((None, {"click"}), ("click", {"click"}), ("order", set())):
        found = analyse(shown, outcomes, "control", primary=primary)
        assert {kind for kind, one in found.arms[1].lifts.items() if one.holds} == held
    with pytest.raises(UserError, match="--primary 'sale' is not an outcome; there are click, order"):
        analyse(shown, outcomes, "control", primary="sale")


def test_repeated_ids_are_counted_and_what_was_before_is_left_out(finished: Path) -> None:
    shown = read_exposures(finished / "exposures").to_pandas()
    outcomes = pd.read_csv(finished / "outcomes.csv")
    whole = analyse(shown, outcomes, "control")
    later = shown[~shown["shadow"]].head(7).assign(at=shown["at"].max() + pd.Timedelta(hours=1))
    twice = analyse(pd.concat([shown, later]), outcomes, "control")
    assert (whole.repeated, twice.repeated) == (0, 7)
    assert twice.arms[1].rates == pytest.approx(whole.arms[1].rates)  # sums of many threads differ in the last digit
    since = analyse(pd.concat([shown, later]), outcomes, "control", since=later["at"].min().to_pydatetime())
    assert sum(arm.requests for arm in since.arms) == 7


def test_the_report_says_how_to_read_it(finished: Path) -> None:
    words = finished / "exposures", finished / "outcomes.csv", "--plot", finished / "said.svg"
    said = text(broadfast("experiment", "report", *words, "--primary", "click", "--since", "2020-01-01"))
    assert "Holm" in said and "lifts in click" in said and "one look at the end" in said.replace("\n", " ")
    size = re.search(
        r"80 % of experiments of this size find a lift of \+(\d+\.\d)% in click\.", said.replace("\n", " ")
    )
    assert size and 10 < float(size[1]) < 40, "that of 40 % was found"
