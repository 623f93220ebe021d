"""Errors as a person sees them: one message, the story in a file, and no secret in either."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
import typer

from workflows.terminal import clear_errors, quiet

KEY = "sk-0123456789abcdef"


def fail() -> None:
    raise RuntimeError(f"illegal header b'Bearer {KEY}\\n' for https://me:pass@host/v1 and TOKENIZERS false")


@pytest.mark.parametrize("has_folder", [True, False])
def test_the_traceback_of_a_failure_is_in_a_file_that_the_message_names(
    has_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOST_API_KEY", f"{KEY}\n")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    log = tmp_path / ("." if has_folder else "run") / "broadfast.log"
    with pytest.raises(typer.Exit) as ended, clear_errors(log):
        fail()
    assert ended.value.exit_code == 1
    said = capsys.readouterr().err
    named = re.search(r"The full traceback is in (\S+)\.$", said.strip())
    assert named and (Path(named[1]) == log) == has_folder
    story = Path(named[1]).read_text()
    assert "in fail" in story and "Traceback" in story
    for text in (said, story):
        assert "Bearer $HOST_API_KEY" in text and "https://***@host/v1" in text and "TOKENIZERS false" in text
        assert KEY not in text and "me:pass" not in text


def test_a_full_log_begins_anew_and_what_was_in_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.terminal.LOG_BYTES", 1000)
    monkeypatch.setattr("workflows.terminal.LOG_EVERY_S", 0.01)
    log, kept = tmp_path / "serve.log", tmp_path / "serve.log.1"
    with quiet(log):
        os.write(1, b"before" * 200)
        while not kept.exists() or log.stat().st_size:
            time.sleep(0.01)
        os.write(1, b"after")
    assert (log.read_bytes(), kept.read_bytes()) == (b"after", b"before" * 200)
