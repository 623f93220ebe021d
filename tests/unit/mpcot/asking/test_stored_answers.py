"""Answers that are there already: what is left to ask, how they are joined to pairs, which failures count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.base.errors import UserError
from cluster.base.tables import read_table, write_table
from mpcot.asking import generate, join_answers, missing_requests
from mpcot.asking.answers import ANSWERS, JOINED, Answers
from mpcot.asking.generate import select_pairs
from mpcot.asking.missing_requests import MISSING, REQUESTED, given_up, write_missing
from mpcot.config import AnswerSettings
from mpcot.records import ANSWER, PAIR
from tests.helpers.scripted_plan import PLAN, batches, keys, pair


def answer_row(key: str, **changes: Any) -> dict[str, Any]:
    row = {"key": key, "pair_id": "p0", "perspective": "intent", "sample": 0, "rationale": "r", "verdict": "E"}
    return row | {"logprobs": None, "prompt_tokens": 1, "output_tokens": 1, "tries": 2, "reason": None} | changes


def write_part(folder: Path, name: str, *rows: dict[str, Any]) -> None:
    write_table(folder / ANSWERS / f"{name}.parquet", pa.Table.from_pylist(list(rows), ANSWER))


def answer_all(folder: Path, name: str, rows: list[dict[str, Any]], **changes: Any) -> None:
    asked = [(row, place, key) for row in rows for place, key in keys(row=row).items()]
    write_part(
        folder,
        name,
        *(answer_row(key, pair_id=row["pair_id"], perspective=p, sample=n, **changes) for row, (p, n), key in asked),
    )


def collected(folder: Path, requested: int, most_failed: float = 1.0) -> list[dict[str, Any]]:
    found = Answers(folder, "rationales", most_failed, requested, 0).by_pair()
    return [row for joined in found for row in joined.answers.to_pylist()]


def test_only_what_lacks_an_answer_is_to_be_asked(tmp_path: Path) -> None:
    pairs = [pair(n) for n in range(3)]
    own = keys(row=pairs[1])
    done = set(keys(row=pairs[0]).values()) | {own["intent", 0]}
    write_part(tmp_path, "w1-0", *map(answer_row, done))
    assert write_missing(PLAN, batches(pairs), tmp_path) == (18, 11)
    todo = read_table(tmp_path / MISSING).to_pylist()
    assert [row["pair_id"] for row in todo] == ["p1", "p2"]
    assert set(todo[0]["keys"]) == set(own.values()) - done
    requested = read_table(tmp_path / REQUESTED)["key"].to_pylist()
    assert requested == [key for row in pairs for key in keys(row=row).values()]


def test_answers_of_other_settings_are_left_out_and_doubles_count_once(tmp_path: Path) -> None:
    pairs = [pair(n) for n in range(4)]
    answer_all(tmp_path, "w1-0", pairs[::-1])
    write_part(tmp_path, "w2-0", answer_row(keys(row=pairs[0])["intent", 0], rationale="later"), answer_row("old"))
    assert write_missing(PLAN, batches(pairs), tmp_path) == (24, 0)
    found = collected(tmp_path, 24)
    places = [(row["pair_id"], row["perspective"], row["sample"]) for row in found]
    assert places == sorted((row["pair_id"], *place) for row in pairs for place in keys(row=row))
    assert {row["rationale"] for row in found} == {"r"}
    assert not (tmp_path / JOINED).exists()


def test_no_pair_is_cut_in_two_and_their_order_is_by_id_whatever_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join_answers, "SORTED_PAIRS", 7)
    monkeypatch.setattr(missing_requests, "PAIRS_AT_A_TIME", 7)
    pairs = [pair(pair_id=f"{n * 37 % 256:02x}{n:04x}") for n in range(60)]
    answer_all(tmp_path, "w1-0", pairs[:30])
    answer_all(tmp_path, "w2-0", pairs[30:])
    assert write_missing(PLAN, batches(pairs, 7), tmp_path) == (360, 0)
    found = list(Answers(tmp_path, "rationales", 0.0, 360, 0).by_pair())
    assert len(found) > 3
    together = [sorted(set(joined.answers["pair_id"].to_pylist())) for joined in found]
    assert together == [sorted(joined.pairs["pair_id"].to_pylist()) for joined in found]
    assert [i for ids in together for i in ids] == sorted(row["pair_id"] for row in pairs)
    assert sum(len(joined.answers) for joined in found) == 360


def test_a_request_without_an_answer_is_named_at_the_end(tmp_path: Path) -> None:
    pairs = [pair(n) for n in range(2)]
    answer_all(tmp_path, "w1-0", pairs[:1])
    write_missing(PLAN, batches(pairs), tmp_path)
    first = min(keys(row=pairs[1]).values())
    with pytest.raises(UserError, match=f"6 answers are missing, first {first}"):
        collected(tmp_path, 12)


def test_a_share_of_failures_stops_after_the_last_pair(tmp_path: Path) -> None:
    pairs = [pair(n) for n in range(4)]
    answer_all(tmp_path, "w1-0", pairs[:3])
    answer_all(tmp_path, "w2-0", pairs[3:], reason="empty", verdict=None)
    write_missing(PLAN, batches(pairs), tmp_path)
    with pytest.raises(UserError, match="25% of the answers failed, more than max_failed_share 20%: 6 x empty"):
        collected(tmp_path, 24, most_failed=0.2)
    write_missing(PLAN, batches(pairs), tmp_path)
    assert len(collected(tmp_path, 24, most_failed=0.25)) == 24


def test_pairs_are_chosen_by_split_and_id_whatever_their_order(tmp_path: Path) -> None:
    rows = [pair(n, split=("train", "dev", "test")[n % 3]) for n in range(30)]
    path = write_table(tmp_path / "pairs.parquet", pa.Table.from_pylist(rows, PAIR))
    turned = write_table(tmp_path / "turned.parquet", pa.Table.from_pylist(rows[::-1], PAIR))
    ask = AnswerSettings(splits=("train", "test"), pairs_per_split=4)
    chosen = [{r["pair_id"] for b in select_pairs(p, ask) for r in b.to_pylist()} for p in (path, turned)]
    assert chosen[0] == chosen[1] and len(chosen[0]) == 8
    everything = AnswerSettings(splits=("train", "test"))
    found = [row["split"] for batch in select_pairs(path, everything) for row in batch.to_pylist()]
    assert set(found) == {"train", "test"} and len(found) == 20


def test_what_an_engine_failed_to_answer_is_asked_again(tmp_path: Path) -> None:
    """Other failures are the model's own and would come again."""
    one = pair()
    first, second, *others = keys(row=one).values()
    broken = answer_row(first, rationale=None, verdict=None, reason="engine error: OSError: gone")
    own = answer_row(second, sample=1, verdict=None, reason="empty")
    write_part(tmp_path, "w1-0", broken, own, *(answer_row(key, perspective="rules") for key in others))
    assert write_missing(PLAN, batches([one]), tmp_path) == (6, 1)
    assert read_table(tmp_path / MISSING)["keys"].to_pylist() == [[first]]
    assert collected(tmp_path, 6)[0]["reason"] == broken["reason"]
    write_part(tmp_path, "w2-0", answer_row(first))
    assert write_missing(PLAN, batches([one]), tmp_path) == (6, 0)
    assert [row["reason"] for row in collected(tmp_path, 6)] == [None, "empty", None, None, None, None]


def test_more_retries_ask_again_what_failed_as_often_as_it_might_before(tmp_path: Path) -> None:
    """Not what can never be answered, and not what was."""
    one = pair()
    first, second, third, *others = keys(row=one).values()
    empty = answer_row(first, verdict=None, reason="empty", tries=2)
    long = answer_row(second, sample=1, verdict=None, reason="prompt too long: 900 tokens, limit 600", tries=1)
    fatal = answer_row(third, verdict=None, reason="stops the engine: it is gone", tries=2, perspective="attributes")
    write_part(tmp_path, "w1-0", empty, long, fatal, *(answer_row(key, perspective="rules") for key in others))
    assert write_missing(PLAN, batches([one]), tmp_path) == (6, 0)
    patient = replace(PLAN, ask=PLAN.ask.model_copy(update={"retries": 2}))
    assert write_missing(patient, batches([one]), tmp_path) == (6, 2)
    assert read_table(tmp_path / MISSING)["keys"].to_pylist() == [[first, third]]
    write_part(tmp_path, "w2-0", answer_row(first), answer_row(third, perspective="attributes"))
    assert write_missing(patient, batches([one]), tmp_path) == (6, 0)
    assert None in {row["reason"] for row in collected(tmp_path, 6) if row["key"] == first}, (
        "the answer, not the failure"
    )


def test_what_was_given_up_in_earlier_runs_counts_into_the_share_that_may_fail(tmp_path: Path) -> None:
    """Or every rerun of a broken prompt would pay for as many failures again."""
    one = pair()
    first, second, third, *_ = keys(row=one).values()
    empty = [answer_row(key, verdict=None, reason="empty", tries=9) for key in (first, second)]
    write_part(tmp_path, "w1-0", *empty, answer_row("elsewhere", verdict=None, reason="empty", tries=9))
    write_part(tmp_path, "w2-0", answer_row(second), answer_row(third, verdict=None, reason="engine error: gone"))
    assert write_missing(PLAN, batches([one]), tmp_path) == (6, 4)
    assert given_up(PLAN, tmp_path) == 1, "one was answered since, one is asked again, one is nobody's"
    strict = replace(PLAN, ask=PLAN.ask.model_copy(update={"max_failed_share": 0.1}))
    with pytest.raises(UserError, match=r"17% of the answers failed.*1 x given up in earlier runs\. Raise retries"):
        generate.generate(strict, batches([one]), tmp_path, "rationales")


def test_parts_of_other_versions_count_and_stay(tmp_path: Path) -> None:
    """An upgrade must not make anybody pay again."""
    one = pair()
    first, *others = ((key, *place) for place, key in keys(row=one).items())
    for name, group in (("w1-0", [first]), ("w2-0", others)):
        write_part(tmp_path, name, *(answer_row(key, perspective=p, sample=n) for key, p, n in group))
    old, new = sorted((tmp_path / ANSWERS).iterdir())
    write_table(old, read_table(old).drop_columns(["tries", "cached_tokens", "reason"]))
    write_table(new, read_table(new).append_column("judge", pa.array(["x"] * len(others))))
    write_table(tmp_path / ANSWERS / "no-answers.parquet", pa.table({"other": ["x"]}))
    assert write_missing(PLAN, batches([one]), tmp_path) == (6, 0)
    found = collected(tmp_path, 6)
    assert [row["rationale"] for row in found] == ["r"] * 6 and len(list((tmp_path / ANSWERS).iterdir())) == 3
    assert {row["key"]: row["tries"] for row in found}[first[0]] is None


def test_a_folder_without_answers(tmp_path: Path) -> None:
    assert write_missing(PLAN, batches([pair()]), tmp_path) == (6, 6)
    with pytest.raises(UserError, match="6 answers are missing"):
        collected(tmp_path, 6)
