"""The end of an engine that hangs: none of its processes is left, grandchildren neither."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

SLEEP = "import time; time.sleep(600)"
# The tests' own process may have children that must live, so all this runs in another one.
HANGS = f"""
import os, signal, subprocess, sys
print(subprocess.Popen([sys.executable, "-c", {SLEEP!r}]).pid, flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
ASKS = f"""
import os, subprocess, sys
from mpcot.asking.engines.processes import descendants, kill_all
child = subprocess.Popen([sys.executable, "-c", {HANGS!r}], stdout=subprocess.PIPE, text=True)
grandchild = int(child.stdout.readline())
os.waitid(os.P_PID, child.pid, os.WSTOPPED)
started = descendants()
if sys.argv[1] == "child is gone":
    child.kill()
    child.wait()
kill_all(started)
print(child.pid, grandchild)
"""


@pytest.mark.parametrize("case", ["child is stopped", "child is gone"])
def test_no_process_of_an_engine_is_left(case: str) -> None:
    done = subprocess.run([sys.executable, "-c", ASKS, case], capture_output=True, text=True, check=True)
    left = [int(pid) for pid in done.stdout.split()]
    assert len(left) == 2
    deadline = time.monotonic() + 30
    while (left := [pid for pid in left if runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        psutil.Process(pid).kill()
    assert not left


def runs(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
