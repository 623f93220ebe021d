"""The sample of logged answers: without repeats, the same for the same seed, and of the hours and model asked for."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster.base.errors import UserError
from mpcot.sources.clean_rows import Cleaning
from serve.watching import sample
from serve.watching.answer_log import open_answers
from serve.watching.sample import SAMPLED, Wish, draw_sample, lowest, newest_model
from tests.helpers.answer_logs import CODES, write_answers

NOW = datetime.now(UTC)
RECENT, LATER = NOW - timedelta(hours=1), NOW + timedelta(hours=9)  # a whole suite may run before
CLEANING = Cleaning(CODES, {}, "us")


def row(n: int, at: int = 0, label: str = "E") -> dict[str, Any]:
    product = {"title": f"lamp {n}", "brand": None, "description": None, "bullets": None, "attributes": None}
    return {"query": f"q{n}", "at": at, "label": label} | product


def test_the_draw_is_uniform_and_does_not_depend_on_the_order() -> None:
    rows = [row(n) for n in range(30)]
    drawn: Counter[str] = Counter()
    for seed in range(300):
        kept, seen = lowest(rows, 5, str(seed))
        assert kept.keys() == lowest(rows[::-1], 5, str(seed))[0].keys() and (len(kept), seen) == (5, 30)
        drawn.update(one["query"] for one in kept.values())
    assert len(drawn) == 30 and all(20 < count < 85 for count in drawn.values()), "each 50 times, more or less"


def test_a_pair_that_was_asked_often_is_drawn_once_with_its_latest_answer() -> None:
    often = [row(0, at, label) for at, label in enumerate("ESS")] + [row(0, -1, "C")] * 50
    kept, seen = lowest([*often, row(1)], 5, "a")
    assert seen == 54 and sorted(one["label"] for one in kept.values()) == ["E", "S"]


def test_sampled_pairs_have_no_label_but_the_served_one(tmp_path: Path) -> None:
    log = write_answers(tmp_path, 20)
    table, left_out = draw_sample(log, Wish(10, RECENT, "shop@1", "a"), CLEANING)
    rows = table.to_pylist()
    assert table.schema == SAMPLED and len({one["pair_id"] for one in rows}) == 10
    assert {(one["label"], one["split"], one["model"]) for one in rows} == {(None, "unlabelled", "shop@1")}
    assert {one["served"] for one in rows} <= set(CODES) and rows[0]["brand"] == "Glow" and rows[0]["locale"] == "us"
    assert left_out == {"drawn from": 40}
    assert table == draw_sample(log, Wish(10, RECENT, "shop@1", "a"), CLEANING)[0]
    assert table != draw_sample(log, Wish(10, RECENT, "shop@1", "b"), CLEANING)[0]


def test_only_the_model_asked_for_is_sampled(tmp_path: Path) -> None:
    write_answers(tmp_path, 3, "old@1")
    log = write_answers(tmp_path, 3, "new@2")
    assert newest_model(log, RECENT) == "new@2"
    with pytest.raises(UserError, match=r"no parquet part since 20.* is there"):
        newest_model(log, LATER)
    table, _ = draw_sample(log, Wish(100, RECENT, "old@1"), CLEANING)
    assert set(table["model"].to_pylist()) == {"old@1"} and len(table) == 6


def test_parts_that_are_joined_while_they_are_read_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, opened = write_answers(tmp_path, 5), []

    def joined_meanwhile(path: Path, since: datetime | None = None) -> Any:
        opened.append(found := open_answers(path, since))
        if len(opened) in (1, 3):
            (part,) = path.rglob("*.parquet")
            part.rename(part.with_name(f"{len(opened)}.parquet"))
        return found

    monkeypatch.setattr(sample, "open_answers", joined_meanwhile)
    assert newest_model(log, RECENT) == "shop@1" and len(opened) == 2
    assert len(draw_sample(log, Wish(100, RECENT), CLEANING)[0]) == 10 and len(opened) == 4


def test_labels_of_another_scheme_are_left_out(tmp_path: Path) -> None:
    table, left_out = draw_sample(write_answers(tmp_path, 4, labels="E1"), Wish(100, RECENT), CLEANING)
    assert left_out == {"drawn from": 8, "unknown label": 4} and len(table) == 4


def test_a_folder_without_answers_of_that_time_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no logged answers \(no parquet part since"):
        draw_sample(tmp_path, Wish(5, RECENT), CLEANING)
    log = write_answers(tmp_path, 1)
    with pytest.raises(UserError, match=r"holds no logged answers of other@1 since .* --hours.*serve\.answer_log"):
        draw_sample(log, Wish(5, RECENT, "other@1"), CLEANING)


def test_where_nothing_that_was_drawn_can_be_judged_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_answers(tmp_path, 3)
    monkeypatch.setattr(sample, "make_row", lambda *_: {"error": "title too long: 5,000 characters"})
    with pytest.raises(UserError, match=r"none of the logged answers that were drawn can be judged .*title too long 5"):
        draw_sample(tmp_path, Wish(5, RECENT), CLEANING)
