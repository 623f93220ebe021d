"""Two arms of an experiment side by side on the service's page, in a real browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from serve.config import ServeSettings
from serve.experiments.config import Arm, ExperimentSettings
from serve.experiments.experiment_service import ExperimentService
from serve.experiments.exposures import ExposureLog
from serve.http.routes import make_api
from serve.replica.replica import QueuedStudent
from serve.scoring.scorer import Scorer
from tests.helpers.browser_look import NEEDS_CHROMIUM
from tests.helpers.driven_page import LAYOUT, LIMITS, TIMES, driven
from tests.helpers.local_service import local_service

pytestmark = NEEDS_CHROMIUM


@pytest.fixture
def arms(scorer: Scorer, tmp_path: Path) -> FastAPI:
    """Two arms and a shadow: the student, and one that scores the other way round."""
    service = local_service(scorer)
    names = {"control": service, "new": QueuedStudent(Contrary(service.scorer), ServeSettings(), service.thread)}
    experiment = ExperimentSettings(
        name="e",
        folder=tmp_path / "exposures",
        arms=(*(Arm(name=name, export="x", share=0.5) for name in names), Arm(name="dark", export="x", shadow=True)),
    )
    log = ExposureLog(experiment.folder, experiment)
    students = ExperimentService(service, names | {"dark": service}, experiment, log)
    return make_api(students, ServeSettings(limits=LIMITS, experiment=experiment))


class Contrary:
    """A scorer that finds best what another one finds worst."""

    drift = None

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.name, self.explainer = scorer, "contrary", scorer.explainer
        self.about = scorer.about.model_copy(update={"id": self.name})

    def answer(self, requests: Any) -> Any:
        answers = self.scorer.answer(requests)
        return [[r.model_copy(update={"score": 1 - r.score, "label": "S"}) for r in results] for results in answers]


SIDE_BY_SIDE = """
await until(ranked);
const lists = () => [...page.querySelectorAll(".side")].map((side) => ({
  name: side.querySelector("h2").textContent, times: side.querySelector(".times").textContent,
  titles: [...side.querySelectorAll(".title")].map((title) => title.textContent),
  moved: [...side.querySelectorAll(".moved:not([hidden])")].map((mark) => [mark.textContent, mark.title]),
}));
const boxes = [...page.querySelectorAll(".side")].map((side) => side.getBoundingClientRect());
const both = {lists: lists(), status: $("status").textContent, address: view.location.hash};
const first = page.querySelector(".side .result");
first.querySelector("summary").click();
await until(() => page.querySelectorAll(".result details[open]").length === 2);
const twins = [...page.querySelectorAll(".result:has(details[open]) .title")].map((title) => title.textContent);
first.querySelector("summary").focus();
const same = page.querySelectorAll(".result.same").length;
$("left").value = [...$("left").options].find((option) => option.text.startsWith("dark")).value;
$("right").value = "";
$("right").dispatchEvent(new view.Event("change", {bubbles: true}));
await until(() => page.querySelectorAll(".side").length === 1 && ranked());
const choices = [...$("right").options].map((option) => option.text);
const beside = boxes[0].top === boxes[1].top;
return {both, beside, twins, same, choices, alone: view.location.hash, status: $("status").textContent};
"""


def test_two_arms_stand_side_by_side_with_what_moved(arms: FastAPI, tmp_path: Path) -> None:
    with driven(arms, tmp_path) as do:
        seen = do(SIDE_BY_SIDE)
        opened = do(SIDE_BY_SIDE.partition("const first")[0] + "return {lists: lists()};", "#q=red&arms=new,dark")
        unknown = do(
            'await until(() => !$("problem").hidden); return {said: $("problem").textContent};', "#q=red&arms=old"
        )
    left, right = seen["both"]["lists"]
    assert (left["name"].split()[0], right["name"]) == ("control", "new contrary")
    assert right["titles"] == left["titles"][::-1] and left["moved"] == [] and seen["beside"]
    assert right["moved"][0] == ["▲ 7", "7 places higher than in control"]
    assert right["moved"][-1] == ["▼ 7", "7 places lower than in control"]
    assert all(re.fullmatch(TIMES, side["times"]) for side in (left, right))
    assert "8 of them moved" in seen["both"]["status"] and seen["both"]["address"].endswith("&arms=control%2Cnew")
    assert (seen["twins"], seen["same"]) == ([left["titles"][0]] * 2, 2)
    assert [choice.split()[0] for choice in seen["choices"]] == ["nothing", "control", "dark", "new"]
    assert seen["alone"].endswith("&arms=dark") and " in " in seen["status"]
    assert [side["name"].split()[0] for side in opened["lists"]] == ["new", "dark"]
    assert "no arm “old”" in unknown["said"]
    assert not list((tmp_path / "exposures").rglob("*.parquet")), "who looks is no shopper"


@pytest.mark.parametrize("width", [375, 1280])
def test_two_arms_fit_too(arms: FastAPI, tmp_path: Path, width: int) -> None:
    with driven(arms, tmp_path) as do:
        seen = do(LAYOUT, "", width)
    assert seen["scroll"] == seen["client"] <= width and seen["named"]
