"""Progress with time left: a live bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.base.placement import on_this_node
from cluster.base.waiting import Waiting

PLAIN_EVERY_S = 10.0
ADDED = {"failed", "in flight"}
_console = Console(soft_wrap=True)


def console() -> Console:
    """Return the console that people read; the command line may point it past redirected chatter."""
    return _console


def use_console(new: Console) -> None:
    """Make `new` the console that progress and tables go to."""
    global _console
    _console = new


@dataclass
class Bar:
    """One task's progress. `update` takes how much is done in all, and figures to show beside it."""

    label: str
    unit: str
    total: int | None = None
    done: int = 0
    figures: dict[str, str] = field(default_factory=dict)
    live: Any = None
    started: float = field(default_factory=time.monotonic)
    printed: float = 0.0
    waiting: Waiting | None = None
    before: int = 0

    def wait(self, what: str) -> None:
        """Show what is waited for, until the first update."""
        self.waiting = self.waiting or Waiting(what)
        self._show(self.waiting.text())

    def update(self, done: int, total: int | None = None, **figures: Any) -> None:
        """Show `done` of `total` units, with named figures; the time left counts from the first update on."""
        if self.waiting is not None:
            self.waiting.over()
            self.waiting, self.started, self.before = None, time.monotonic(), done
        self.done, self.total = done, total if total is not None else self.total
        self.figures |= {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in figures.items()}
        self._show("  ".join(f"{k} {v}" for k, v in self.figures.items()))

    def _show(self, text: str) -> None:
        if self.live is not None:
            self.live.update(0, completed=self.done, total=self.total, figures=text)
        elif time.monotonic() - self.printed >= PLAIN_EVERY_S:
            self.printed = time.monotonic()
            console().print(self.line(), highlight=False)

    def line(self) -> str:
        """Return the progress as one plain line, with an estimate of the time left."""
        if self.waiting is not None:
            return f"{self.label}: {self.waiting.text()}"
        spent, moved = time.monotonic() - self.started, self.done - self.before
        parts = [f"{self.label}: {self.done}" + (f"/{self.total}" if self.total else "") + f" {self.unit}s"]
        parts += [f"{k} {v}" for k, v in self.figures.items()]
        if self.total and moved > 0:
            parts.append(f"{spent / moved * (self.total - self.done):.0f} s left")
        return ", ".join(parts)


@contextmanager
def progress(label: str, unit: str, total: int | None = None, done: int = 0) -> Iterator[Bar]:
    """Show a bar while the block runs. What was `done` before does not count for the time left."""
    bar = Bar(label, unit, total, done, before=done)
    if not console().is_terminal:
        yield bar
        console().print(bar.line(), highlight=False)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console(), transient=True) as live:
        live.add_task(label, total=total, completed=done, figures="")
        bar.live = live
        yield bar


@contextmanager
def waiting_for(what: str, how_far: Callable[[], str] | None = None, every_s: float = 10.0) -> Iterator[None]:
    """Print every `every_s` seconds what the block waits for; remember how long it took once it ends well.

    Args:
        how_far: returns what is going on meanwhile. If it cannot tell, the line does without.
    """
    wait, ended = Waiting(what), threading.Event()

    def say() -> None:
        while not ended.wait(every_s):
            now = ""
            if how_far:
                with suppress(Exception):
                    now = f" ({how_far()})"
            console().print(f"  {wait.text()}{now}", highlight=False)

    speaker = threading.Thread(target=say, daemon=True)
    speaker.start()
    try:
        yield
        wait.over()
    finally:
        ended.set()
        speaker.join()


class _BoardActor:
    """Holds the newest counts of every worker; workers put, the driver polls."""

    def __init__(self) -> None:
        self.newest: dict[str, tuple[int, int | None, dict[str, float]]] = {}

    def put(
        self, worker: str, done: int, total: int | None, figures: dict[str, float]
    ) -> dict[str, tuple[int, int | None, dict[str, float]]]:
        self.newest[worker] = (done, total, figures)
        return self.newest

    def get(self) -> dict[str, tuple[int, int | None, dict[str, float]]]:
        return self.newest


@dataclass
class Board:
    """The driver's end of progress on workers: a thread that polls the actor and moves the bar.

    What the workers have done is added up; a figure whose name is in ADDED or ends in `/s` too, of others the
    newest shows.
    """

    actor: Any
    bar: Bar
    ended: threading.Event
    waits_for: str
    thread: threading.Thread | None = None

    @classmethod
    def start(cls, bar: Bar, waits_for: str, every_s: float = 1.0) -> Board:
        """Start the actor on the connected Ray and the polling thread.

        Args:
            waits_for: what is shown until a worker has put its first counts.
        """
        import ray

        actor = ray.remote(**on_this_node())(_BoardActor).remote()
        board = cls(actor, bar, threading.Event(), waits_for)
        board.thread = threading.Thread(target=board._poll, args=(every_s,), daemon=True)
        board.thread.start()
        return board

    def _poll(self, every_s: float) -> None:
        while not self.ended.wait(every_s):
            self._update()

    def _update(self) -> None:
        import ray

        with suppress(Exception):  # progress must never end a stage
            self._show(ray.get(self.actor.get.remote(), timeout=5))

    def _show(self, newest: dict[str, tuple[int, int | None, dict[str, float]]]) -> None:
        if not newest:
            self.bar.wait(self.waits_for)
            return
        figures: dict[str, float] = {}
        for _, _, shown in newest.values():
            for name, value in shown.items():
                figures[name] = figures.get(name, 0.0) + value if name in ADDED or name.endswith("/s") else value
        totals = [total for _, total, _ in newest.values() if total]
        self.bar.update(sum(done for done, _, _ in newest.values()), max(totals, default=None), **figures)

    def stop(self) -> None:
        """End the thread and the actor."""
        import ray

        self.ended.set()
        if self.thread is not None:
            self.thread.join(timeout=10)
        self._update()
        ray.kill(self.actor)
