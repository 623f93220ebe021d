"""What `broadfast submit` does: it runs a pipeline as a job on a Ray cluster and follows the job to its end."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cluster.base.errors import UsageError, UserError
from cluster.base.progress import console
from workflows.config import load_config
from workflows.runner import select
from workflows.stages import stages_of

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).parents[1]
# Gitignore patterns of what the nodes have themselves or do not need.
EXCLUDES = ("/.venv", "/models", "/runs", "/.git", "__pycache__", "*.egg-info", "/.*_cache", "/build")
POLL_S = 1.0
PATIENCE_S = 300.0  # for a job server that does not answer, because a head may restart while the job goes on
INTERRUPTED = 130


@dataclass(frozen=True)
class Submission:
    """What Ray is asked to run: a shell command and its environment."""

    entrypoint: str
    runtime_env: dict[str, Any]


def plan_submission(
    config: Path,
    changes: Sequence[str] = (),
    out: Path | None = None,
    first: str | None = None,
    last: str | None = None,
    install: str | None = None,
    root: Path = ROOT,
) -> Submission:
    """Return the job of `broadfast run` with these arguments, whose working folder is a copy of the repository.

    Args:
        install: an extra of pyproject.toml whose packages every node installs first; by default none.

    Raises:
        UsageError: the config is not part of the repository, the run folder is not an absolute path, or a stage or an
            extra does not exist.
    """
    inside = _sent(config, root)
    if out is None or not out.is_absolute():
        raise UsageError(f"--out {out or 'is missing'}: give an absolute path on storage that every node mounts")
    select(first, last, stages_of(load_config(config, changes)))
    words = ["python", "-m", "workflows.cli", "run", str(inside), "--out", str(out)]
    words += [word for change in changes for word in ("--set", change)]
    words += [word for name, stage in (("--from", first), ("--to", last)) if stage for word in (name, stage)]
    return _job(words, install, root)


def plan_scoring(
    export_dir: Path, table: str, out: str, config: Path | None, changes: Sequence[str], flags: Sequence[str],
    root: Path = ROOT,
) -> Submission:  # fmt: skip
    """Return the job of `broadfast score` with these arguments, likewise.

    Raises:
        UsageError: the config is not part of the repository, or another place is not an absolute path or a URI.
    """
    _check_clone(root)
    for name, place in (("EXPORT_DIR", str(export_dir)), ("FILE", table), ("--out", out)):
        if "://" not in place and not Path(place).is_absolute():
            raise UsageError(f"{name} {place}: give an absolute path on storage that every node mounts, or a URI")
    words = ["python", "-m", "workflows.cli", "score", str(export_dir), table, "--out", out, *flags]
    words += [word for change in changes for word in ("--set", change)]
    if config is not None:
        words += ["--config", str(_sent(config, root))]
    return _job(words, None, root)


def _job(words: Sequence[str], install: str | None, root: Path) -> Submission:
    runtime_env: dict[str, Any] = {"working_dir": str(root), "excludes": list(EXCLUDES)}
    if install:
        runtime_env["pip"] = {"packages": requirements(install, root), "pip_check": False}
    return Submission(shlex.join(words), runtime_env)


def _sent(config: Path, root: Path) -> Path:
    """Return the path of a config in the copy of the repository that the job gets.

    Raises:
        UsageError: it is not in that copy.
    """
    _check_clone(root)
    if not config.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{config} is outside the repository {root}, which is all that the job gets: copy it there")
    inside = config.resolve().relative_to(root.resolve())
    if inside.parts[0] in {name.strip("/") for name in EXCLUDES}:
        raise UsageError(f"{config} is in {inside.parts[0]}, which is not sent with the job: copy it elsewhere")
    if _ignored(inside, root):
        raise UsageError(f"{config} is not sent with the job, because .gitignore names it: copy it elsewhere")
    return inside


def _check_clone(root: Path) -> None:
    if not (root / "pyproject.toml").is_file():
        raise UsageError(f"{root} is not a clone of the repository, whose files the job needs: submit from a clone")


def _ignored(inside: Path, root: Path) -> bool:
    """Say whether a `.gitignore` names the file, tracked or not, because Ray leaves out such files."""
    command = ["git", "-C", str(root), "check-ignore", "--quiet", "--no-index", str(inside)]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:  # git is not installed
        return False


def requirements(extra: str, root: Path = ROOT) -> list[str]:
    """Return the packages of an extra with their pins in pyproject.toml, without Ray, which the cluster has itself.

    Raises:
        UsageError: the extra does not exist.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    if extra not in extras:
        raise UsageError(f"--install {extra!r}: no such extra; there are {', '.join(extras)}")

    def unfold(lines: Sequence[str]) -> list[str]:
        found = []
        for line in lines:
            own = re.fullmatch(rf"{project['name']}\[(.+)\]", line)
            found += unfold([p for name in own[1].split(",") for p in extras[name.strip()]]) if own else [line]
        return found

    wanted = dict.fromkeys([*project["dependencies"], *unfold(extras[extra])])
    return [line for line in wanted if not re.match(r"ray\b", line)]


def submit(address: str, job: Submission, wait: bool = True) -> int:
    """Submit the job, follow its log and return its exit code; without `wait`, return 0 at once.

    Ctrl-C asks whether to stop the job or let it run, and then returns 130.

    Raises:
        UserError: no job server answers, or it refuses the job.
    """
    client = connect(address)
    try:
        job_id = client.submit_job(entrypoint=job.entrypoint, runtime_env=dict(job.runtime_env))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{address} did not take the job: {error}") from error
    follow_later = f"ray job logs --address {address} --follow {job_id}"
    _say(f"submitted {job_id}: {job.entrypoint}")
    if not wait:
        _say(f"follow it with: {follow_later}")
        return 0
    try:
        return asyncio.run(follow(client, job_id))
    except KeyboardInterrupt:
        _ask_to_stop(client, job_id, follow_later)
        return INTERRUPTED


def _say(line: str, **more: Any) -> None:
    console().print(line, highlight=False, markup=False, **more)


def connect(address: str) -> JobSubmissionClient:
    """Return a client of the job server.

    Raises:
        UserError: nothing answers there, or a part of Ray is not installed.
    """
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--address {address!r}: no Ray job server answers there ({error}). Give the head's dashboard address, "
            "such as http://HEAD:8265."
        ) from error


async def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Print the job's output until it ends, and return its exit code. A lost connection only ends the printing.

    Raises:
        UserError: the job server did not answer for `PATIENCE_S`, though the job may still run.
    """
    from aiohttp import ClientError

    try:
        async for lines in client.tail_job_logs(job_id):
            _say(lines, end="", soft_wrap=True)
    except (RuntimeError, ClientError) as error:
        _say(f"the log broke off ({error}), but {job_id} is still being followed")
    info = await _ended(client, job_id)
    if info.status == "SUCCEEDED":
        return 0
    _say(f"{job_id} {info.status.lower()}: {info.message}")
    code = info.driver_exit_code or 1
    return code if code > 0 else 128 - code  # the code of a job that a signal ended is the signal's number, negated


async def _ended(client: JobSubmissionClient, job_id: str) -> Any:
    """Return what the job server says about the job once it has ended."""
    heard = time.monotonic()
    while True:
        try:
            info = client.get_job_info(job_id)
            heard = time.monotonic()
        except (RuntimeError, OSError) as error:  # errors of requests are OSErrors
            if time.monotonic() - heard > PATIENCE_S:
                raise UserError(
                    f"{job_id}: its job server does not answer any more ({error}). The job may still run."
                ) from error
        else:
            if info.status.is_terminal():
                return info
        await asyncio.sleep(POLL_S)


def _ask_to_stop(client: JobSubmissionClient, job_id: str, follow_later: str) -> None:
    with suppress(typer.Abort):  # there is no terminal to answer from, so the job goes on
        if typer.confirm(f"\nStop {job_id} on the cluster as well?", default=False):
            client.stop_job(job_id)
            while not client.get_job_status(job_id).is_terminal():
                time.sleep(POLL_S)
            _say(f"stopped {job_id}; its finished stages are kept")
            return
    _say(f"{job_id} continues. Follow it with: {follow_later}")
