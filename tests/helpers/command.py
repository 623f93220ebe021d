"""The command `broadfast` in this process, for tests."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from workflows.cli import app


def broadfast(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def text(result: Result) -> str:
    """What a person saw, with line breaks of any width taken out."""
    return " ".join(result.output.split())


def files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
