"""`broadfast submit` against the job server of a real head: followed, left alone, stopped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.base.free_port import free_port
from cluster.base.stage_folder import MANIFEST
from tests.helpers.command import broadfast, text
from workflows import submit
from workflows.submit import ROOT

# One node: a second one on the same machine shares the folder that jobs are unpacked into and, when it joins, unpacks
# the job anew while that is already running in it.
HEAD = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": True}
DEMO = ROOT / "workflows/configs/demo.toml"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a head's job server."""
    port, agent = free_port(), free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")  # where a node finds `python`
        ports = {"dashboard_port": port, "dashboard_agent_listen_port": agent}
        cluster = Cluster(initialize_head=True, head_node_args=HEAD | ports)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            cluster.shutdown()


def arguments(address: str, out: Path, *more: str) -> list[str]:
    return ["submit", str(DEMO), "--address", address, "--out", str(out), "--set", "source.pairs=30", *more]


def test_a_job_is_followed_and_its_exit_code_returned(address: str, tmp_path: Path) -> None:
    result = broadfast(*arguments(address, tmp_path / "run", "--to", "pairs"))
    said = text(result)
    assert result.exit_code == 0, said
    assert "submitted raysubmit_" in said and "1-pairs" in said, "the job's own output"
    assert (tmp_path / "run/1-pairs" / MANIFEST).is_file()
    # The same run from a stage whose input is missing fails there, and so does the command here.
    result = broadfast(*arguments(address, tmp_path / "run", "--from", "dpo", "--to", "dpo"))
    assert result.exit_code == 1 and "6-dpo reads" in text(result), text(result)


def test_a_job_is_left_alone_or_stopped_when_asked(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = broadfast(*arguments(address, tmp_path / "alone", "--to", "pairs", "--no-wait"))
    assert result.exit_code == 0 and "follow it with: ray job logs" in text(result)

    async def interrupted(client: object, job_id: str) -> int:
        raise KeyboardInterrupt

    asked: list[str] = []
    monkeypatch.setattr(submit, "follow", interrupted)
    monkeypatch.setattr(typer, "confirm", lambda question, **_: bool(asked.append(question)) or True)
    result = broadfast(*arguments(address, tmp_path / "stopped", "--to", "pairs"))
    assert result.exit_code == 130 and "stopped raysubmit_" in text(result), text(result)
    jobs = JobSubmissionClient(address).list_jobs()
    (stopped,) = (job for job in jobs if str(tmp_path / "stopped") in job.entrypoint)
    assert stopped.status == JobStatus.STOPPED and str(stopped.submission_id) in asked[0]
    assert not (tmp_path / "stopped/1-pairs" / MANIFEST).exists()
