"""The job that `broadfast submit` asks Ray for, as data, and what it refuses before anything is sent."""

from __future__ import annotations

import asyncio
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.base.errors import UsageError, UserError
from tests.helpers.command import broadfast, text
from workflows import submit
from workflows.submit import ROOT, Submission, plan_scoring, plan_submission, requirements

DEMO = Path("workflows/configs/demo.toml")
OUT = Path("/shared/runs/demo")


def test_the_job_is_the_same_run_with_the_repository_around_it() -> None:
    job = plan_submission(ROOT / DEMO, ["teacher.model='a b'", "seed=3"], OUT, "rationales", "sft")
    assert shlex.split(job.entrypoint) == [
        *("python", "-m", "workflows.cli", "run", str(DEMO), "--out", str(OUT)),
        *("--set", "teacher.model='a b'", "--set", "seed=3", "--from", "rationales", "--to", "sft"),
    ]
    assert job.runtime_env["working_dir"] == str(ROOT)
    assert {"/.venv", "/models", "/runs", "/.git"} <= set(job.runtime_env["excludes"])
    assert "pip" not in job.runtime_env


def test_a_table_is_scored_by_the_same_command_on_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Submission] = []
    monkeypatch.setattr(submit, "submit", lambda address, job, wait: sent.append(job) or 3)
    places = ("/shared/10-export", "s3://shop/pairs", "--out", "/shared/scores")
    given = ("--set", "bulk.replicas=4", "--config", ROOT / DEMO, "--explain", "--latents")
    assert broadfast("score", *places, *given, "--submit", "http://head:8265").exit_code == 3, "that of the job"
    assert shlex.split(sent[0].entrypoint) == [
        *("python", "-m", "workflows.cli", "score", *places, "--latents", "--explain"),
        *("--set", "bulk.replicas=4", "--config", str(DEMO)),
    ]
    assert sent[0].runtime_env["working_dir"] == str(ROOT)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"export_dir": Path("runs/10-export")}, "EXPORT_DIR runs/10-export: give an absolute path"),
        ({"table": "pairs.csv"}, "FILE pairs.csv: give an absolute path"),
        ({"out": "scores"}, "--out scores: give an absolute path on storage that every node mounts, or a URI"),
        ({"config": Path("/etc/other.toml")}, "outside the repository"),
    ],
)
def test_places_that_the_cluster_does_not_see_are_refused(changed: dict, words: str) -> None:
    given = {"export_dir": Path("/shared/10-export"), "table": "/shared/pairs.csv", "out": "/shared/scores"}
    with pytest.raises(UsageError, match=words):
        plan_scoring(**({"config": None, "changes": (), "flags": ()} | given | changed))


def test_an_extra_brings_the_pins_of_pyproject_and_leaves_ray_to_the_cluster() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    packages = plan_submission(ROOT / DEMO, out=OUT, install="gpu").runtime_env["pip"]["packages"]
    expected = {*project["dependencies"], *extras["train"], *extras["serve"], *extras["gpu"]}
    assert set(packages) == {p for p in expected if not p.startswith(("ray", "broadfast"))}
    assert len(packages) == len(set(packages))
    assert any(p.startswith("vllm==") for p in packages)
    assert not any(p.startswith("vllm==") for p in requirements("cpu"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": Path("/etc/other.toml")}, "outside the repository"),
        ({"config": ROOT / "runs/own.toml"}, "is in runs, which is not sent"),
        ({"config": ROOT / "workflows/data/own.toml"}, "because .gitignore names it"),
        ({"out": None}, "--out is missing"),
        ({"out": Path("runs/demo")}, "--out runs/demo: give an absolute path"),
        ({"first": "nothing"}, "no stage 'nothing'"),
        ({"first": "sft", "last": "pairs"}, "comes after"),
        ({"install": "tpu"}, "no such extra; there are train"),
        ({"root": Path("/etc")}, "not a clone"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_submission(**({"config": ROOT / DEMO, "out": OUT} | changes))


def test_an_address_where_nothing_answers_is_named() -> None:
    result = broadfast("submit", ROOT / DEMO, "--address", "http://127.0.0.1:9", "--out", OUT)
    assert result.exit_code == 1
    assert "--address 'http://127.0.0.1:9': no Ray job server answers there" in text(result)


class LostServer:
    """A job server that breaks off the log and does not answer for a while."""

    def __init__(self, lost: int) -> None:
        self.answers: Iterator[bool] = iter([False] * lost + [True] * 9)

    async def tail_job_logs(self, job_id: str):
        yield "first line\n"
        raise RuntimeError("the head went")

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        if not next(self.answers):
            raise ConnectionError("refused")
        return SimpleNamespace(status=Ended("FAILED"), message="it failed", driver_exit_code=7)


class Ended(str):
    def is_terminal(self) -> bool:
        return True


def test_a_job_server_that_goes_and_comes_back_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "POLL_S", 0.01)
    assert asyncio.run(submit.follow(LostServer(3), "raysubmit_1")) == 7  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "first line" in said and "the log broke off" in said and "it failed" in said
    monkeypatch.setattr(submit, "PATIENCE_S", 0.0)
    with pytest.raises(
        UserError, match=r"raysubmit_1: its job server does not answer any more .* The job may still run"
    ):
        asyncio.run(submit.follow(LostServer(3), "raysubmit_1"))  # type: ignore[arg-type]
