"""A handle on a contestant or load generator, which takes commands as lines of JSON in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]


@dataclass
class Contestant:
    """A running process and, for a contestant, the seconds per request by size and round."""

    kind: str
    process: subprocess.Popen[str]
    taken: dict[int, list[list[float]]] = field(default_factory=dict)

    @classmethod
    def start(cls, kind: str, script: str, *arguments: str, python: str = sys.executable) -> Contestant:
        """Start a script of this folder. Its first answer says whether it is ready."""
        command = [python, str(Path(__file__).parent / script), *arguments]
        pipe, silent = subprocess.PIPE, subprocess.DEVNULL
        return cls(kind, subprocess.Popen(command, text=True, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=silent))

    def hear(self) -> Any:
        """Read one answer."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"{self.kind} ended without an answer"
        return json.loads(line)

    def ask(self, **command: Any) -> Any:
        """Give one command and wait for the answer."""
        assert self.process.stdin
        print(json.dumps(command), file=self.process.stdin, flush=True)
        return self.hear()

    def stop(self) -> None:
        """End the process and all that it started: vLLM's engine would go on without it."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        self.process.wait()
        for child in below:
            with suppress(psutil.NoSuchProcess):
                child.kill()

    def rates(self, size: int) -> list[float]:
        """Return the pairs per second of each round."""
        return [size * len(seconds) / sum(seconds) for seconds in self.taken[size]]

    def rate(self, size: int) -> float:
        """Return the median of the rounds' pairs per second."""
        return statistics.median(self.rates(size))
