"""The worker by itself: what it writes when, what it does not ask again, and when it gives up."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from cluster.base.errors import UserError
from cluster.base.shared_folder import SharedFolder
from cluster.base.tables import read_table, write_table
from mpcot.asking import worker as worker_module
from mpcot.asking.answer_parts import Tries
from mpcot.asking.answers import TooManyFailed, least_share
from mpcot.asking.engines.engine import EngineStopped
from mpcot.asking.engines.scripted_engine import Scripted
from mpcot.asking.missing_requests import MISSING_PAIR
from mpcot.asking.poison_requests import PoisonRequests
from mpcot.asking.worker import STOPPED, AnswerWorker
from mpcot.config import AnswerSettings, Replicas, ScriptedEngine
from mpcot.records import PAIR
from tests.helpers.scripted_plan import scripted_plan

ASKS = 3


@pytest.fixture(autouse=True)
def quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "TICK_S", 0.02)


def make(folder: Path, board: dict[str, Any] | None = None, ask: dict[str, Any] | None = None, **engine: Any) -> Any:
    async def put(*news: Any) -> dict[str, Any]:
        return {news[0]: news[1:]} | (board or {})

    replicas = {"restarts": 0} | engine.pop("replicas", {})
    scripted = ScriptedEngine(replicas=Replicas(**replicas), log=str(folder / "log"), **engine)
    plan = scripted_plan(AnswerSettings(**(ask or {})), scripted)
    reached = SimpleNamespace(put=SimpleNamespace(remote=put))
    return AnswerWorker(plan, SharedFolder.at(folder / "answers"), SharedFolder.at(folder / "tried"), reached, 100, 0)


def batch(made: Any, count: int, file: str = "000000") -> pa.Table:
    rows = []
    for number in range(count):
        row: dict[str, Any] = dict.fromkeys(PAIR.names, "x") | {"pair_id": f"p{number}", "label": "E", "split": "train"}
        row["attributes"] = None
        rows.append(row | {"keys": [ask.key for *_, ask in made.plan.asks(row)], "file": file})
    return pa.Table.from_pylist(rows, MISSING_PAIR)


def answer(made: Any, table: pa.Table) -> list[dict[str, Any]]:
    async def work() -> list[dict[str, Any]]:
        return [told async for told in made(table)]

    return asyncio.run(work())


def asked(folder: Path) -> list[str]:
    return (folder / "log").read_text().split()


def written(folder: Path) -> list[str]:
    return read_table(folder / "answers")["key"].to_pylist()


def test_a_batch_is_on_disk_when_it_is_done(tmp_path: Path) -> None:
    made = make(tmp_path, replicas={"flush_rows": 4})
    (told,) = answer(made, batch(made, 5))
    assert told.pop("engine_start_s")[0] >= 0
    assert told == {"answers": [15], "prompt_tokens": [900], "cached_tokens": [0], "output_tokens": [300]}
    assert sorted(written(tmp_path)) == sorted(asked(tmp_path)) and len(set(asked(tmp_path))) == 15
    assert max(len(read_table(part)) for part in (tmp_path / "answers").iterdir()) <= 4


def test_an_engine_that_hangs_is_given_up_and_what_it_finished_is_written(tmp_path: Path) -> None:
    made = make(tmp_path, hangs_after=7, replicas={"stalled_s": 1})
    with pytest.raises(EngineStopped, match=r"it finished no answer for 1 s \(engine.replicas.stalled_s\)"):
        answer(made, batch(made, 5))
    assert len(written(tmp_path)) == 7


def test_a_board_that_does_not_answer_hides_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "BOARD_S", 0.05)
    made = make(tmp_path, hangs_after=7, replicas={"stalled_s": 1})
    made.board.put.remote = lambda *_: asyncio.Event().wait()
    with pytest.raises(EngineStopped, match="it finished no answer for 1 s"):
        answer(made, batch(made, 5))


def test_an_engine_that_is_gone_loses_nothing_finished(tmp_path: Path) -> None:
    made = make(tmp_path, stops_after=7)
    with pytest.raises(EngineStopped, match="its processes are gone after 7 answers"):
        answer(made, batch(made, 5))
    assert len(written(tmp_path)) == 7


class ProcessEnded(BaseException):
    """In place of the end of this process."""


def end(_code: int) -> None:
    raise ProcessEnded


def test_an_engine_that_is_gone_ends_its_process_as_often_as_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os._exit", end)
    killed: list[int] = []
    monkeypatch.setattr(Scripted, "kill", lambda _: killed.append(1))
    # The second and the third narrow down what the first was asked, but the culprit is never the same.
    for number, counted in enumerate((1, 1, 1, 2)):
        made = make(tmp_path, stops_after=2, replicas={"restarts": 2})
        with pytest.raises(ProcessEnded):
            answer(made, batch(made, 5))
        assert f"Starting another (restart {counted} of 2)." in capfd.readouterr().err
        # All but the first are asked an easy question before a suspect is asked alone.
        assert len(written(tmp_path)) == 2 + number
    last = make(tmp_path, stops_after=2, replicas={"restarts": 2})
    with pytest.raises(EngineStopped, match="its processes are gone"):
        answer(last, batch(last, 5))
    assert len(written(tmp_path)) == len(set(written(tmp_path))) == 6
    assert len(killed) == 5, "what is left of the last one would hold its GPU too"


def test_a_request_that_stops_every_engine_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os._exit", end)
    script = {"stops_on": "Product: poison", "replicas": {"restarts": 1}}

    def poisoned(made: Any) -> pa.Table:
        rows = batch(made, 5).to_pylist()
        rows[2]["title"] = "poison"
        rows[2]["keys"] = [ask.key for *_, ask in made.plan.asks(rows[2])]
        return pa.Table.from_pylist(rows, MISSING_PAIR)

    # The first stops for one of 15; then each perspective of the poisoned pair stops two, asked alone.
    for _ in range(1 + 2 * ASKS):
        made = make(tmp_path, **script)
        with pytest.raises(ProcessEnded):
            answer(made, poisoned(made))
    last = make(tmp_path, **script)
    answer(last, poisoned(last))
    found = read_table(tmp_path / "answers").to_pylist()
    assert len(found) == len({row["key"] for row in found}) == 15
    failed = [row for row in found if row["reason"]]
    assert {row["pair_id"] for row in failed} == {"p2"} and len(failed) == 3
    assert all(row["reason"].startswith("stops the engine: its processes are gone") for row in failed)


def test_an_engine_that_cannot_answer_an_easy_question_stops_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os._exit", end)
    script = {"stops_after": 0, "replicas": {"restarts": 2}}
    for _ in range(2):
        made = make(tmp_path, **script)
        with pytest.raises(ProcessEnded):
            answer(made, batch(made, 1))
    last = make(tmp_path, **script)
    with pytest.raises(EngineStopped):
        answer(last, batch(last, 1))
    assert not list((tmp_path / "answers").glob("*.parquet")), "no request is to blame"


def test_a_full_disk_loses_no_answer_that_finds_room_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tmp_path)
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(full))
        with pytest.raises(UserError, match="the disk is full"):
            answer(made, batch(made, 5))
    assert list((tmp_path / "answers").iterdir()) == []
    made.parts.flush()
    assert len(written(tmp_path)) == 15


def test_what_waits_is_written_after_some_seconds_though_no_answer_comes(tmp_path: Path) -> None:
    made = make(tmp_path, hangs_after=7, replicas={"stalled_s": 60, "flush_seconds": 0.1})

    async def look() -> None:
        work = asyncio.ensure_future(anext(made(batch(made, 5))))
        while sum(len(read_table(part)) for part in (tmp_path / "answers").glob("*.parquet")) < 7:
            await asyncio.sleep(0.05)
        assert not work.done()
        work.cancel()

    asyncio.run(look())


def test_another_try_asks_only_for_what_the_first_did_not_write(tmp_path: Path) -> None:
    first = make(tmp_path, stops_after=7)
    with pytest.raises(EngineStopped):
        answer(first, batch(first, 5))
    before = set(written(tmp_path))
    second = make(tmp_path)
    assert answer(second, batch(second, 5))[0]["answers"] == [8]
    assert len(written(tmp_path)) == len(set(written(tmp_path))) == 15
    assert not before & set(asked(tmp_path)[-8:])


def test_another_try_asks_again_what_the_engine_failed_on(tmp_path: Path) -> None:
    first = make(tmp_path)
    answer(first, batch(first, 1))
    (part,) = (tmp_path / "answers").iterdir()
    table = read_table(part)
    reasons = pa.array(["engine error: OSError: gone", "empty", None], pa.string())
    write_table(part, table.set_column(table.schema.get_field_index("reason"), table.schema.field("reason"), reasons))
    second = make(tmp_path)
    assert answer(second, batch(second, 1))[0]["answers"] == [1]


def test_a_file_begun_twice_keeps_its_first_mark(tmp_path: Path) -> None:
    """Another worker takes over what was answered since then."""
    tries = Tries(SharedFolder.at(tmp_path / "tried"), SharedFolder.at(tmp_path / "answers"), "w1")
    tries.begin(["000000"])
    mark = tmp_path / "tried" / "000000" / "w1"
    os.utime(mark, (1000, 1000))
    tries.begin(["000000", "000001"])
    assert mark.stat().st_mtime == 1000 and (tmp_path / "tried" / "000001" / "w1").exists()


def test_what_failed_in_earlier_runs_counts_too(tmp_path: Path) -> None:
    made = make(
        tmp_path,
        {"other": (50, None, {"in flight": 0, "failed": 8.0})},
        {"max_failed_share": 0.2, "retries": 0},
        delay_s=0.1,
    )
    made.failed = 13
    with pytest.raises(TooManyFailed, match="21% of the answers failed"):
        answer(made, batch(made, 4))


def test_a_stage_whose_first_answers_fail_is_stopped_and_they_are_kept(tmp_path: Path) -> None:
    made = make(tmp_path, ask={"retries": 0}, failure_share=1.0, delay_s=0.1, replicas={"flush_rows": 10**6})
    made.requested = 300_000_000
    answer(made, batch(made, 160))
    said = r"^\d+% of the first 900 requests failed, more than max_failed_share 20%: \d+ x unparsable.* is kept\. Mend"
    with pytest.raises(TooManyFailed, match=said):
        answer(made, batch(made, 140, "000001"))
    assert made.done == len(written(tmp_path)) >= 480


def test_early_failures_prove_little_while_more_requests_are_on_their_way(tmp_path: Path) -> None:
    """What fails at once is answered first."""
    others = {"other": (500, None, {"in flight": 2000, "failed": 500})}
    patient = make(tmp_path, others, {"max_failed_share": 0.2}, delay_s=0.1)
    strict = make(tmp_path, others, {"max_failed_share": 0.15}, delay_s=0.1)
    patient.requested = strict.requested = 10**6
    assert answer(patient, batch(patient, 1))[0]["answers"] == [ASKS]
    with pytest.raises(TooManyFailed, match="20% of the first 2,503 requests failed"):
        answer(strict, batch(strict, 1, "000001"))


def test_how_many_failures_prove_too_many() -> None:
    """By hand, with z = 3.0902: (0.24 + 0.00955 - 0.05979) / 1.0191 for 120 of 500."""
    assert least_share(120, 500) == pytest.approx(0.1862, abs=1e-4)
    assert least_share(499, 499) == 0
    assert least_share(0, 1000) == 0


def test_failures_of_all_workers_stop_the_work_once_the_share_is_passed(tmp_path: Path) -> None:
    others = {"other": (50, None, {"in flight": 0, "failed": 18.0})}
    settings = {"failure_share": 1.0, "delay_s": 0.1, "replicas": {"stalled_s": 60}}
    few = make(tmp_path, others, {"max_failed_share": 0.21, "retries": 0}, **settings)
    assert answer(few, batch(few, 1))[0]["answers"] == [ASKS]
    many = make(tmp_path, others, {"max_failed_share": 0.2, "retries": 0}, **settings)
    said = "21% of the answers failed, more than max_failed_share 20%: 3 x unparsable"
    with pytest.raises(TooManyFailed, match=said):
        for _ in range(2):
            answer(many, batch(many, 1, "000001"))


def test_requests_that_stop_engines_count_as_failures(tmp_path: Path) -> None:
    board = {"other": (50, None, {"in flight": 0, "failed": 10.0})}
    made = make(tmp_path, board, {"max_failed_share": 0.11, "retries": 0}, delay_s=0.1)
    for number in range(2):
        stopped = PoisonRequests(SharedFolder.at(tmp_path / "tried" / STOPPED), f"gone{number}", ASKS)
        stopped.add([f"k{number}"], poison=True, search=True, idle=False)
    said = "12% of the answers failed, more than max_failed_share 11%: 2 x stops the engine"
    with pytest.raises(TooManyFailed, match=said):
        answer(made, batch(made, 1))
