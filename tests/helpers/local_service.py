"""The service without Ray: the API over a scorer in this process, and a real server for it where a browser asks."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import uvicorn
from fastapi import FastAPI

from cluster.base.tables import write_table
from distill.student.rationale_index import write_index
from mpcot.records import PAIR
from serve.config import ServeSettings
from serve.replica.model_thread import ModelThread
from serve.replica.replica import QueuedStudent
from serve.scoring.scorer import Scorer
from tests.helpers.report_run import SCRIPT, pairs, write_export, write_judgements
from tests.helpers.tiny_bert import WORDS


def local_service(scorer: Scorer, settings: ServeSettings | None = None) -> QueuedStudent:
    """Return what a replica is, over a scorer that is at hand."""
    return QueuedStudent(scorer, settings or ServeSettings(), ModelThread())


def varied_pairs() -> list[dict[str, Any]]:
    """Made-up pairs whose titles a tiny student tells apart."""
    titles = [f"{' '.join(WORDS[n % 8 : 8])} {n} {SCRIPT if n % 4 == 0 else ''}".strip() for n in range(len(pairs()))]
    return [{**row, "title": title} for row, title in zip(pairs(), titles, strict=True)]


def explaining_export(folder: Path, index_pairs: int = 40) -> Path:
    """Write an export of a tiny student with an index of made-up training rationales into `folder`."""
    export, rows = write_export(folder / "export", folder / "bert"), varied_pairs()
    write_table(folder / "pairs.parquet", pa.Table.from_pylist(rows, PAIR))
    write_judgements(folder, rows)
    assert write_index(export, folder / "pairs.parquet", folder / "judgements.parquet", index_pairs)
    return export


@contextmanager
def running(api: FastAPI) -> Iterator[str]:
    """Serve `api` on a free port of this machine for the length of the block; yield its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(api, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
