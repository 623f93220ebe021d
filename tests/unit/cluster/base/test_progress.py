"""Progress: plain lines where no one watches, sums over workers, time left."""

from __future__ import annotations

import io
import os
import re
import threading
from pathlib import Path

import pytest
from rich.console import Console

from cluster.base import progress as shown
from cluster.base.progress import Bar, Board, progress, use_console, waiting_for
from cluster.base.waiting import remembered


@pytest.fixture
def said() -> io.StringIO:
    text = io.StringIO()
    before = shown.console()
    use_console(Console(file=text, width=200))
    yield text
    use_console(before)


def test_a_line_tells_rows_figures_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = Bar("sft", "step", total=40, started=100.0)
    monkeypatch.setattr(shown.time, "monotonic", lambda: 110.0)
    bar.done, bar.figures = 10, {"train loss": "0.5"}
    assert bar.line() == "sft: 10/40 steps, train loss 0.5, 30 s left"


def test_what_an_earlier_run_has_done_is_no_part_of_the_speed(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: clock[0])
    with progress("study runs", unit="run", total=24, done=8) as bar:
        bar.started = clock[0]
        bar.update(8)
        assert said.getvalue() == "study runs: 8/24 runs\n"
        clock[0] += 100
        bar.update(10)
    assert said.getvalue().endswith("study runs: 10/24 runs, 700 s left\n")


def test_no_total_no_estimate() -> None:
    assert Bar("pairs", "pair").line() == "pairs: 0 pairs"


def test_plain_lines_are_rare_and_the_last_is_always_said(said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: clock[0])
    with progress("judgements", unit="answer", total=50) as bar:
        for done in range(1, 51):
            clock[0] += 1
            bar.update(done, loss=1 / 3)
    lines = said.getvalue().splitlines()
    assert len(lines) == 1 + 49 // shown.PLAIN_EVERY_S + 1
    assert lines[0].startswith("judgements: 1/50 answers, loss 0.3333")
    assert lines[-1].startswith("judgements: 50/50 answers")


def test_a_board_adds_up_what_workers_did_and_their_speed() -> None:
    bar = Bar("rationales", "answer", total=100)
    board = Board(None, bar, threading.Event(), "an engine to start")
    board._show({})
    assert bar.done == 0 and "waiting for an engine to start" in bar.line()
    board._show({"a": (30, None, {"tokens/s": 100.0, "loss": 1.0}), "b": (12, None, {"tokens/s": 50.0, "loss": 2.0})})
    assert (bar.done, bar.total) == (42, 100)
    assert bar.figures == {"tokens/s": "150", "loss": "2"}
    board._show({"rank 0": (7, 20, {})})
    assert bar.total == 20


def test_what_starts_is_named_with_the_time_that_it_took_last(
    said: io.StringIO, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: clock[0])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for expected in ("", r" \(last time 60 s\)"):
        bar = Bar("rationales", "answer", total=40, started=clock[0])
        for _ in range(60):
            bar.wait("an engine to start")
            clock[0] += 1
        assert re.fullmatch(f"rationales: waiting for an engine to start, 60 s{expected}", bar.line())
        bar.update(4)
        clock[0] += 10
        bar.update(14)
        assert bar.line() == "rationales: 14/40 answers, 26 s left", "the start is no part of the speed"
    assert said.getvalue().count("waiting for an engine to start") >= 10


def test_a_cache_that_cannot_be_read_or_written_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broadfast").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with waiting_for("a service to start", every_s=60):
        pass
    assert (tmp_path / "broadfast").read_text() == "in the way"


def test_a_user_without_a_home_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does where there is no such user
    assert remembered().is_absolute()


def test_a_wait_is_said_while_it_lasts(said: io.StringIO, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spoken = threading.Event()
    monkeypatch.setattr(said, "write", lambda text: (spoken.set(), len(text))[1])
    with waiting_for("a service to start", every_s=0.01):
        assert spoken.wait(60), "nothing was said"
