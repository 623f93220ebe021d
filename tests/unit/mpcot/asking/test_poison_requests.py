"""Who is blamed when an engine stops, and who may enter the next one beside whom."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cluster.base.shared_folder import Store
from mpcot.asking.poison_requests import FEW, ROOM, Gate, Suspects


def suspects(folder: Path, worker: str) -> Suspects:
    made = Suspects(Store.at(folder), worker, in_a_row=3)
    made.read()
    return made


def stop(folder: Path, worker: str, *keys: str, guilty: bool = False, idle: bool = False) -> int:
    return suspects(folder, worker).blame(keys, guilty, idle)


def test_a_request_needs_more_room_the_fewer_it_was_among(tmp_path: Path) -> None:
    many = [f"k{number}" for number in range(FEW + 1)]
    assert stop(tmp_path, "a", *many) == 1
    second = suspects(tmp_path, "b")
    assert {second.room(key) for key in many} == {ROOM // FEW} and second.room("other") == 1
    assert second.blame(many[:FEW], guilty=False, idle=False) == 1, "it narrows down what the first was asked"
    third = suspects(tmp_path, "c")
    assert {third.room(key) for key in many[:FEW]} == {ROOM} and third.room(many[FEW]) == ROOM // FEW
    assert third.blame(many[:1], guilty=False, idle=False) == 1
    assert [third.blamed(key) for key in (many[0], many[1], many[FEW], "other")] == [3, 2, 1, 0]
    assert third.alone(many[0]) and not third.alone(many[1]) and third.convicted == 0
    fourth = suspects(tmp_path, "d")
    assert fourth.blame(many[:1], guilty=True, idle=False) == 0, "all four stopped for a known request"
    assert fourth.convicted == 1


def test_an_engine_that_stops_for_no_known_request_counts(tmp_path: Path) -> None:
    assert stop(tmp_path, "a", "k1", "k2") == 1
    assert stop(tmp_path, "b", "k1", guilty=True) == 0
    assert stop(tmp_path, "c", "k3") == 1
    assert stop(tmp_path, "d") == 2
    assert stop(tmp_path, "e", "k3") == 3, "again, and nothing was narrowed down"


def test_two_engines_with_a_request_each_need_one_restart_each(tmp_path: Path) -> None:
    assert stop(tmp_path, "a1", "a", "b", "c") == 1
    assert stop(tmp_path, "b1", "x", "y", "z") == 2
    # Another engine may be given suspects of both.
    assert stop(tmp_path, "a2", "a", "y") == 2
    assert stop(tmp_path, "b2", "x") == 2
    assert stop(tmp_path, "a3", "a") == 2
    assert stop(tmp_path, "a4", "a", guilty=True) == 1
    assert stop(tmp_path, "b3", "x", guilty=True) == 0


def test_an_engine_that_every_request_stops_is_itself_to_blame(tmp_path: Path) -> None:
    assert stop(tmp_path, "start", "k0", "k1", "k2", "k3", "k4", "k5", idle=True) == 1
    counted = []
    for number in range(6):
        stop(tmp_path, f"{number}-once", f"k{number}", idle=True)
        counted.append(stop(tmp_path, f"{number}-again", f"k{number}", guilty=True, idle=True))
    assert counted == [0, 0, 0, 1, 2, 3]


def test_what_others_note_is_seen_after_reading(tmp_path: Path) -> None:
    early = suspects(tmp_path, "a")
    stop(tmp_path, "b", "k1")
    assert early.room("k1") == 1
    early.read()
    assert early.room("k1") == ROOM


def test_one_who_needs_all_room_is_alone_and_nobody_passes() -> None:
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
