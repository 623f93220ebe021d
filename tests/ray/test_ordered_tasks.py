"""Work spread over Ray's workers gives what it gives here, in the same order: also the keys of requests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.base.errors import UserError
from cluster.base.ordered_tasks import FEW, in_tasks
from cluster.base.tables import read_table
from mpcot.asking.missing_requests import MISSING, REQUESTED, write_missing
from tests.helpers.scripted_plan import PLAN, batches, pair

pytestmark = pytest.mark.usefixtures("local_ray")


def test_results_come_in_order_from_other_processes() -> None:
    found = list(in_tasks(lambda number: (number, os.getpid()), iter(range(5 * FEW))))
    assert [number for number, _ in found] == list(range(5 * FEW))
    assert os.getpid() not in {process for _, process in found}


def test_little_work_is_done_here() -> None:
    assert list(in_tasks(lambda _: os.getpid(), range(FEW))) == [os.getpid()] * FEW
    assert list(in_tasks(str, [])) == []


def test_an_error_of_the_work_arrives_as_it_is() -> None:
    def work(number: int) -> int:
        if number == 2 * FEW:
            raise UserError("no such label")
        return number

    with pytest.raises(UserError, match=r"^no such label$"):
        list(in_tasks(work, range(5 * FEW)))


def test_requests_are_those_that_one_process_makes(tmp_path: Path) -> None:
    pairs = batches([pair(number, attributes=[("colour", "red")]) for number in range(40)], 3)
    here, spread = tmp_path / "here", tmp_path / "spread"
    assert write_missing(PLAN, pairs, here) == write_missing(PLAN, pairs, spread, in_tasks) == (240, 240)
    for name in (REQUESTED, MISSING):
        assert read_table(spread / name).equals(read_table(here / name))
