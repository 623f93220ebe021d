"""Which requests are suspected when an engine stops, which share the next engine, and how many restarts that uses."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cluster.base.shared_folder import SharedFolder
from mpcot.asking.poison_requests import FEW, ROOM, Gate, PoisonRequests


def requests(folder: Path, worker: str) -> PoisonRequests:
    made = PoisonRequests(SharedFolder.at(folder), worker, per_pair=3)
    made.read()
    return made


def stop(folder: Path, worker: str, *keys: str, poison: bool = False, search: bool = False, idle: bool = False) -> int:
    return requests(folder, worker).add(keys, poison, search or poison, idle)


def test_a_request_needs_more_room_the_fewer_it_was_among(tmp_path: Path) -> None:
    many = [f"k{number}" for number in range(FEW + 1)]
    assert stop(tmp_path, "a", *many) == 1
    second = requests(tmp_path, "b")
    assert {second.room(key) for key in many} == {ROOM // FEW} and second.room("other") == 1
    assert second.add(many[:FEW], poison=False, search=True, idle=False) == 1, "it searched among what the first had"
    third = requests(tmp_path, "c")
    assert {third.room(key) for key in many[:FEW]} == {ROOM} and third.room(many[FEW]) == ROOM // FEW
    assert third.add(many[:1], poison=False, search=True, idle=False) == 1
    assert [third.times_suspected(key) for key in (many[0], many[1], many[FEW], "other")] == [3, 2, 1, 0]
    assert third.stopped_alone(many[0]) and not third.stopped_alone(many[1]) and third.found == 0
    fourth = requests(tmp_path, "d")
    assert fourth.add(many[:1], poison=True, search=True, idle=False) == 0, "all four stopped for a known request"
    assert fourth.found == 1


def test_an_engine_that_stops_for_no_known_request_counts(tmp_path: Path) -> None:
    assert stop(tmp_path, "a", "k1", "k2") == 1
    assert stop(tmp_path, "b", "k1", poison=True) == 0
    assert stop(tmp_path, "c", "k3") == 1
    assert stop(tmp_path, "d") == 2
    assert stop(tmp_path, "e", "k3") == 3, "its engine answered nothing, so this was no search"


def test_a_search_that_finds_nothing_counts_in_the_end(tmp_path: Path) -> None:
    assert stop(tmp_path, "a", "k1", "k2", "k3") == 1
    assert [stop(tmp_path, f"s{number}", f"k{number}", search=True) for number in range(1, 4)] == [1, 1, 2]


def test_two_engines_with_a_request_each_need_one_restart_each(tmp_path: Path) -> None:
    assert stop(tmp_path, "a1", "a", "b", "c") == 1
    assert stop(tmp_path, "b1", "x", "y", "z") == 2
    # Another engine may be given suspects of both.
    assert stop(tmp_path, "a2", "a", "y", search=True) == 2
    assert stop(tmp_path, "b2", "x", search=True) == 2
    assert stop(tmp_path, "a3", "a", search=True) == 2
    assert stop(tmp_path, "a4", "a", poison=True) == 1
    assert stop(tmp_path, "b3", "x", poison=True) == 0


def test_an_engine_that_every_request_stops_is_itself_the_fault(tmp_path: Path) -> None:
    assert stop(tmp_path, "start", "k0", "k1", "k2", "k3", "k4", "k5", idle=True) == 1
    counted = []
    for number in range(6):
        stop(tmp_path, f"{number}-once", f"k{number}", search=True, idle=True)
        counted.append(stop(tmp_path, f"{number}-again", f"k{number}", poison=True, idle=True))
    assert counted == [0, 0, 0, 1, 2, 3]


def test_what_others_write_is_known_after_reading(tmp_path: Path) -> None:
    early = requests(tmp_path, "a")
    stop(tmp_path, "b", "k1")
    assert early.room("k1") == 1
    early.read()
    assert early.room("k1") == ROOM


def test_a_request_that_needs_all_room_is_alone_and_is_not_overtaken() -> None:
    inside: set[str] = set()
    seen: dict[str, set[str]] = {}
    order: list[str] = []

    async def enter(gate: Gate, name: str, room: int) -> None:
        async with gate.seat(room):
            inside.add(name)
            order.append(name)
            await asyncio.sleep(0.01)
            seen[name] = set(inside)
            inside.remove(name)

    async def all_of_them() -> None:
        gate = Gate(4)
        await asyncio.gather(*(enter(gate, name, room) for name, room in (("a", 1), ("b", 1), ("all", 4), ("c", 2))))
        assert gate.room == 4

    asyncio.run(all_of_them())
    assert order == ["a", "b", "all", "c"]
    assert "b" in seen["a"] | seen["b"] and seen["c"] == {"c"}
    assert seen["all"] == {"all"}
