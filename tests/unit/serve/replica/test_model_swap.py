"""Exchanging a replica's student while it answers: who answers what, what goes, and what is refused. No Ray."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.base.errors import UserError
from serve.config import ServeSettings
from serve.experiments.config import Arm, ExperimentSettings
from serve.experiments.exposures import read_exposures
from serve.http.schemas import Asker, ProductInput, Result, ScoreInput
from serve.replica import model_swap as swap
from serve.replica.model_swap import SwappingService
from serve.scoring.scorer import load_proven
from tests.helpers.echo_service import Echo
from tests.helpers.report_run import write_export

REQUEST = ScoreInput(query="q", products=[ProductInput(id="a", title="a")])


class Named:
    """A scorer that answers once it is let go."""

    explainer = drift = None

    def __init__(self, name: str, free: bool = True) -> None:
        self.name, self.go, self.started = name, threading.Event(), threading.Event()
        self.about = Echo.model_info.model_copy(update={"id": name})
        if free:
            self.go.set()

    def answer(self, requests):
        self.started.set()
        assert self.go.wait(300), "nobody let the model go"
        return [[Result(id="a", label="E", score=1.0, probabilities={}, perspectives={})] for _ in requests]


@pytest.fixture
def scorers(monkeypatch):
    """What each folder holds; a folder without one is no export."""
    found: dict[str, Named] = {}

    def load(export_dir: Path, settings: ServeSettings) -> Named:
        if export_dir.name not in found:
            raise UserError(f"{export_dir} is not an export")
        return found[export_dir.name]

    monkeypatch.setattr(swap, "load_proven", load)
    return found


def test_the_old_one_finishes_what_it_has_taken(scorers):
    scorers |= {"old": Named("old", free=False), "new": Named("new")}

    async def run() -> tuple[str, str]:
        service = SwappingService(ServeSettings())
        assert not service.ready()
        await service.load(Path("old"))
        taken = asyncio.create_task(service.score(REQUEST))
        await asyncio.to_thread(scorers["old"].started.wait, 300)
        old = service.current
        await service.load(Path("new"))
        assert (service.current.service.model, service.ready()) == ("new", True)
        later = await service.score(REQUEST)
        assert not taken.done() and old.asked == 1
        scorers["old"].go.set()
        first = await taken
        await asyncio.gather(*service.leaving)
        with pytest.raises(RuntimeError, match="after shutdown"):
            old.service.thread.submit(print)
        await service.close()
        return first.model, later.model

    assert asyncio.run(run()) == ("old", "new")


def test_what_a_client_left_behind_does_not_keep_the_old_one(scorers):
    scorers |= {"old": Named("old", free=False), "new": Named("new")}

    async def run() -> None:
        service = SwappingService(ServeSettings())
        await service.load(Path("old"))
        taken = asyncio.create_task(service.score(REQUEST))
        await asyncio.to_thread(scorers["old"].started.wait, 300)
        taken.cancel()
        await asyncio.wait([taken])
        await service.load(Path("new"))
        await asyncio.sleep(0.2)
        assert len(service.leaving) == 1, "the model is at it still"
        scorers["old"].go.set()
        await asyncio.gather(*service.leaving)
        await service.close()

    asyncio.run(run())


def test_what_does_not_load_changes_nothing(scorers):
    scorers["old"] = Named("old")

    async def run() -> tuple[str, str]:
        service = SwappingService(ServeSettings())
        await service.load(Path("old"))
        with pytest.raises(UserError, match="nowhere is not an export"):
            await service.load(Path("nowhere"))
        answer = await service.score(REQUEST)
        await service.close()
        return answer.model, service.metrics.text()

    model, figures = asyncio.run(run())
    assert model == "old"
    assert 'broadfast_pairs_total{model="old",replica="local"} 1.0' in figures


LABEL = Echo.model_info.labels[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": [LABEL.model_copy(update={"code": "A"})]}, "labels A instead of E"),
        ({"labels": [LABEL.model_copy(update={"gain": 3})]}, "other gains"),
        ({"perspectives": []}, "perspectives none instead of intent, rules"),
        ({"verdicts": False}, "no verdicts"),
        ({"explanations": False}, "no rationale index"),
    ],
)
def test_what_answers_otherwise_is_rolled_in_only_where_that_is_meant(scorers, change, words):
    scorers |= {"old": Named("old"), "new": Named("new")}
    scorers["new"].about = scorers["new"].about.model_copy(update=change)

    async def run() -> list[str]:
        service = SwappingService(ServeSettings())
        await service.load(Path("old"))
        with pytest.raises(UserError, match=f"new has {words}.*compared with old.*--allow-change"):
            await service.load(Path("new"))
        before = (await service.score(REQUEST)).model
        await service.load(Path("new"), allow_change=True)
        after = (await service.score(REQUEST)).model
        await service.close()
        return [before, after]

    assert asyncio.run(run()) == ["old", "new"]


def test_an_arm_that_answers_otherwise_is_refused_unless_that_is_set(scorers, tmp_path, monkeypatch):
    scorers["old"], other = Named("old"), Named("other")
    other.about = other.about.model_copy(update={"perspectives": []})
    monkeypatch.setattr("serve.experiments.experiment_service.load_proven", lambda folder, settings: other)
    plan = ExperimentSettings(name="e", folder=tmp_path, arms=(Arm(name="control", export="c", share=1),))
    with pytest.raises(UserError, match=r"perspectives none instead of .*experiment\.allow_change"):
        asyncio.run(SwappingService(ServeSettings(experiment=plan)).load(Path("old")))

    async def allowed() -> str:
        service = SwappingService(ServeSettings(experiment=plan.model_copy(update={"allow_change": True})))
        await service.load(Path("old"))
        answer = await service.score(REQUEST, Asker("r", {"X-Unit-ID": "u"}))
        await service.close()
        return answer.model

    assert asyncio.run(allowed()) == "other"


def test_exposures_of_both_are_kept(scorers, tmp_path, monkeypatch):
    scorers |= {"old": Named("old"), "new": Named("new")}
    monkeypatch.setattr("serve.experiments.experiment_service.load_proven", lambda folder, settings: Named(folder.name))
    arms = (Arm(name="control", export="c", share=0.5), Arm(name="new", export="n", share=0.5))
    plan = ExperimentSettings(name="e", folder=tmp_path / "exposures", flush_seconds=3600, arms=arms)

    async def run() -> list[str]:
        service = SwappingService(ServeSettings(experiment=plan))
        models = []
        for folder in ("old", "new"):
            await service.load(Path(folder))
            await service.score(REQUEST, Asker(f"dealt to {folder}", {"X-Unit-ID": "u"}))
            models.append((await service.score(REQUEST)).model)
        await service.close()
        return models

    assert asyncio.run(run()) == ["old", "new"], "who is in no arm is answered by the export itself"
    kept = read_exposures(tmp_path / "exposures")["request_id"].to_pylist()
    assert sorted(kept) == ["dealt to new", "dealt to old"]


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    export = write_export(tmp_path / "export", tmp_path / "bert")
    assert load_proven(export, ServeSettings()).name
    weights = load_file(export / "model.safetensors")
    save_file({name: torch.full_like(part, torch.nan) for name, part in weights.items()}, export / "model.safetensors")
    with pytest.raises(UserError, match="export: its scores are not numbers"):
        load_proven(export, ServeSettings())
    sound = write_export(tmp_path / "sound", tmp_path / "bert")
    arms = (Arm(name="control", export=str(sound), share=0.5), Arm(name="new", export=str(export), share=0.5))
    plan = ExperimentSettings(name="e", folder=tmp_path / "exposures", arms=arms)

    service = SwappingService(ServeSettings(experiment=plan))
    with pytest.raises(UserError, match="export: its scores are not numbers"):
        asyncio.run(service.load(sound))
    assert not service.metrics._queues, "of a load that failed nothing is held on to"
