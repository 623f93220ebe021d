"""What a person sees: a console without the chatter of Ray and vLLM, and errors as one clear message."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer
from rich.console import Console

from cluster.base.errors import UsageError, UserError
from cluster.base.progress import console, use_console

LOG = "broadfast.log"
LOG_BYTES, LOG_EVERY_S = 64 * 2**20, 60.0
SECRET_NAME = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
LEAST_SECRET_CHARS = 8  # shorter values are switches, as of TOKENIZERS_PARALLELISM
PASSWORD = re.compile(r"://[^/@\s]+@")


@contextmanager
def quiet(log: Path | None) -> Iterator[None]:
    """Send all output of this process and its children to `log`, except what is printed on the console.

    This redirects the file descriptors, because native code and worker processes write to them directly. A log that
    has grown to `LOG_BYTES` begins anew, and the text so far is kept beside it, in place of what was kept before.
    """
    if log is None:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    person = Console(file=os.fdopen(os.dup(1), "w", encoding="utf-8"), soft_wrap=True)
    before = console()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    use_console(person)
    ended = threading.Event()
    keeper = threading.Thread(target=_bound, args=(log, ended), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        person.file.close()
        use_console(before)
        for descriptor in (*kept, file):
            os.close(descriptor)


def _bound(log: Path, ended: threading.Event) -> None:
    """Begin the log anew whenever it is full. Who writes to it appends, and so goes on at its new end."""
    while True:
        with suppress(OSError):
            if log.stat().st_size >= LOG_BYTES:
                shutil.copyfile(log, log.with_name(f"{log.name}.1"))
                os.truncate(log, 0)
        if ended.wait(LOG_EVERY_S):
            return


@contextmanager
def clear_errors(log: Path | None = None) -> Iterator[None]:
    """End with one message and an exit code: 1 for a failure, 2 for wrong usage, 130 for Ctrl-C."""
    try:
        yield
    except UserError as error:
        _say(str(error))
        raise typer.Exit(2 if isinstance(error, UsageError) else 1) from error
    except KeyboardInterrupt as error:
        _say("interrupted. What is finished is kept; run the same command again to continue.")
        raise typer.Exit(130) from error
    except (typer.Exit, typer.Abort, SystemExit):
        raise
    except Exception as error:
        where = _keep_traceback(log)
        last = (str(error).strip().splitlines() or ["no message"])[-1]
        _say(f"{type(error).__name__}: {last}{where}")
        raise typer.Exit(1) from error


def _say(message: str) -> None:
    Console(stderr=True).print("[bold red]error:[/bold red] ", end="")
    Console(stderr=True).print(without_secrets(message), markup=False, highlight=False, soft_wrap=True)


def _keep_traceback(log: Path | None) -> str:
    """Append the traceback to the log, or write it to a file of its own where there is none, and say where it is."""
    try:
        if log is None or not log.parent.is_dir():
            handle, name = tempfile.mkstemp(prefix="broadfast-", suffix=".log")
            os.close(handle)
            log = Path(name)
        with log.open("a", encoding="utf-8") as file:
            file.write(without_secrets(traceback.format_exc()))
    except OSError:  # a full disk must not hide the error itself
        return "."
    return f". The full traceback is in {log}."


def without_secrets(text: str) -> str:
    """Return a text without passwords in addresses and without what variables hold that are named like a secret."""
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value.strip()) >= LEAST_SECRET_CHARS:
            text = text.replace(value.strip(), f"${name}")
    return PASSWORD.sub("://***@", text)
