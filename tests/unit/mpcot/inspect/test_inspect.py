"""What `inspect` counts, picks, warns of and shows, on a run whose figures can be worked out by hand."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from rich.console import Console

from cluster.base.errors import UsageError
from cluster.base.stage_folder import MANIFEST
from cluster.base.tables import read_table, write_table
from mpcot.config import AnswerSettings
from mpcot.inspect import figures
from mpcot.inspect.findings import drawn, findings
from mpcot.inspect.inspect_data import collect
from mpcot.inspect.inspect_page import render, write_page
from mpcot.inspect.read_answers import read_answers
from mpcot.inspect.terminal import show
from mpcot.pairs.ids import pair_id
from mpcot.records import PAIR
from tests.helpers.inspect_run import NAMES, SCRIPT, answers, pairs, write_judgements, write_run, write_stage

CODES = ("E", "S", "C", "I")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def found(run_dir: Path) -> dict[str, Any]:
    return collect(run_dir, 4)


@pytest.fixture(scope="module")
def stage(found: dict[str, Any]) -> dict[str, Any]:
    return found["stages"][0]


def test_every_answer_is_counted_once(stage: dict[str, Any]) -> None:
    """intent: 5 right, 2 wrong, 1 without gold; rules: 1 right, 1 loop, 1 failed, 4 wrong, 1 without gold."""
    assert stage["counts"] == {
        "asked": 16, "kept": 8, "filtered": 7, "failed": 1, "pairs": 8, "gold_pairs": 7, "covered_pairs": 5,
    }  # fmt: skip


def test_the_share_of_rationales_with_inventions_is_shown(stage: dict[str, Any], found: dict[str, Any]) -> None:
    """The pairs know of no Maple and no 289; p5 has no rationale from `rules`."""
    assert stage["grounded"] == {"looked_at": 15, "ungrounded": 0}
    rows = [
        {"pair_id": "p", "verdict": "E", "rationale": text}
        for text in ("It is by Maple.", "A lamp for 289.", "A lamp.")
    ]
    assert figures.ungrounded(rows, {"p": "Query: lamp"}) == {"looked_at": 3, "ungrounded": 2}
    assert "Of 15 rationales that were looked at, 0 name a number" in render(found)


def test_kept_rates_leave_out_pairs_without_a_gold_label(stage: dict[str, Any]) -> None:
    cells = {(c["label"], c["perspective"]): (c["kept"], c["asked"]) for c in stage["kept"]}
    assert cells["E", "intent"] == (2, 2) and cells["E", "rules"] == (1, 2) and cells["E", "all"] == (3, 4)
    assert cells["C", "all"] == (0, 4) and cells["all", "intent"] == (5, 7) and cells["all", "all"] == (6, 14)
    assert len(cells) == 5 * 3


def test_verdicts_beside_gold_labels(stage: dict[str, Any]) -> None:
    assert stage["confusion"] == {
        "E": [4, 0, 0, 0, 0], "S": [1, 2, 0, 0, 1], "C": [4, 0, 0, 0, 0], "I": [1, 0, 0, 1, 0],
    }  # fmt: skip
    assert stage["accuracy"]["all"] == pytest.approx(7 / 13)
    assert stage["accuracy"]["perspectives"] == {"intent": pytest.approx(5 / 7), "rules": pytest.approx(2 / 6)}
    assert stage["accuracy"]["majority"]["share"] == pytest.approx(2 / 7)
    assert stage["accuracy"]["verdict"] == {"label": "E", "share": pytest.approx(10 / 13)}


def test_agreement_is_over_pairs_that_both_judged(stage: dict[str, Any]) -> None:
    """Both judged all pairs but p5, and say the same on p0, p2, p4, p6."""
    matrix = stage["agreement"]["matrix"]
    assert matrix[0][1] == matrix[1][0] == pytest.approx(4 / 7)
    assert matrix[0][0] is None and matrix[1][1] is None
    assert stage["agreement"]["pairs"] == 7 and stage["agreement"]["conflicts"] == 3
    assert stage["agreement"]["unanimous"] == pytest.approx(4 / 7)


def test_agreement_of_several_samples_is_the_chance_that_two_of_them_agree() -> None:
    said = [("p", "intent", v) for v in "EES"] + [("p", "rules", v) for v in "ES"]
    table = pd.DataFrame(said, columns=["pair_id", "perspective", "verdict"])
    matrix = figures.agreement(table, NAMES, CODES)["matrix"]
    assert matrix[0][1] == pytest.approx((2 * 1 + 1 * 1) / 6)
    assert matrix[0][0] == pytest.approx(2 / 6) and matrix[1][1] == 0.0


def test_lengths_are_in_characters(stage: dict[str, Any]) -> None:
    rows = stage["lengths"]["perspectives"]
    assert rows["intent"]["quantiles"][0] == 10 and rows["intent"]["quantiles"][4] == 80
    assert rows["intent"]["answers"] == sum(rows["intent"]["bars"]) == 8
    assert rows["rules"]["answers"] == 7


def test_reasons_are_counted_and_many_of_them_are_summed_up(stage: dict[str, Any]) -> None:
    assert stage["reasons"]["filtered"] == {"verdict is not gold": 6, "repetition": 1}
    many = pd.DataFrame({"outcome": "failed", "reason": [f"reason {n}" for n in range(20)]})
    ranked = figures.reasons(many, "failed")
    assert len(ranked) == 13 and ranked["8 other reasons"] == 8


def test_pairs_shown_are_labels_in_turn_and_conflicts_have_a_right_answer(stage: dict[str, Any]) -> None:
    assert [pair["pair_id"] for pair in stage["samples"]] == ["p2", "p0", "p3", "p1"]
    conflicts = {pair["pair_id"]: [v["verdict"] for v in pair["views"]] for pair in stage["conflicts"]}
    assert conflicts == {"p1": ["S", "E"], "p3": ["I", "E"]}


def test_answers_are_shown_for_every_reason(stage: dict[str, Any]) -> None:
    assert set(stage["removed"]) == {"verdict is not gold", "repetition", f"engine error: {SCRIPT}"}
    assert stage["removed"]["repetition"][0]["rationale"] == "Some words" * 5


def test_a_hint_is_no_merit_of_the_teacher(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path)
    plain = collect(run_dir, 2)["stages"][0]
    path = run_dir / "2-rationales" / "kept.parquet"
    table = read_table(path).to_pylist()
    more = [row | {"hinted": False} for row in table]
    more += [row | {"hinted": True, "pair_id": "p2", "sample": -1, "verdict": "C"} for row in table[:2]]
    write_table(path, pa.Table.from_pylist(more))
    hinted = collect(run_dir, 2)["stages"][0]
    assert hinted.pop("hinted") == {"pairs": 1, "asked": 2, "kept": 2} and plain.pop("hinted") is None
    assert hinted == plain


def test_judgements_are_shown_alike(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path)
    write_judgements(run_dir)
    first, last = collect(run_dir, 4)["stages"]
    assert last["words"] == {"kept": "right", "filtered": "wrong"}
    assert last["confusion"] == first["confusion"] and last["agreement"] == first["agreement"]
    # A judgement is not filtered for its form: the loop on p4 is right.
    assert last["counts"]["kept"] == first["counts"]["kept"] + 1
    assert [pair["pair_id"] for pair in last["conflicts"]] == ["p3", "p1"]


def test_of_too_many_answers_those_about_some_pairs_are_read(tmp_path: Path) -> None:
    """Ids are hashes as stage 1 makes them, so that a share of their range is a share of the pairs."""
    ids = [pair_id("us", "lamp", str(n)) for n in range(400)]
    fixed = {"reason": None, "rationale": "It is one.", "verdict": "E", "outcome": "kept", "sample": 0}
    asked = [{"key": f"{one}{name}", "pair_id": one, "perspective": name} | fixed for one in ids for name in NAMES]
    rows = [pairs()[0] | {"pair_id": one} for one in ids]
    write_table(tmp_path / "1-pairs" / "pairs.parquet", pa.Table.from_pylist(rows, PAIR))
    write_stage(tmp_path, "2-rationales", "rationales", asked)
    read, total = read_answers(tmp_path / "2-rationales", NAMES, most=200)
    assert total == 800 and 120 < len(read) < 280
    assert (read.groupby("pair_id").size() == len(NAMES)).all(), "a pair is there with all its answers"
    assert read["label"].notna().all()
    assert len(read_answers(tmp_path / "2-rationales", NAMES)[0]) == 800
    assert drawn(200, 800) == ["All numbers are of 200 of 800 answers, those about pairs that were drawn by a hash."]
    assert drawn(800, 800) == []


def test_what_is_missing_is_said(found: dict[str, Any], tmp_path: Path) -> None:
    assert found["missing"] == {"4-samples": "has not been run", "7-judgements": "has not been run"}
    with pytest.raises(UsageError, match=r"is not a run folder: it has no config\.json"):
        collect(tmp_path, 4)
    run_dir = write_run(tmp_path)
    (run_dir / "2-rationales" / MANIFEST).unlink()
    with pytest.raises(UsageError, match=r"2-rationales has begun but not finished.*--to rationales"):
        collect(run_dir, 4)


def warnings(stage: dict[str, Any], **changes: Any) -> str:
    return " ".join(findings(stage | changes, AnswerSettings(max_chars=60), "rationales"))


def test_what_stands_out_is_said(stage: dict[str, Any]) -> None:
    said = warnings(stage)
    assert "77 % of the verdicts are E" in said and "more than 29 %" in said
    assert "Few answers reach the gold label of C 0 of 4" in said
    assert "6 % of the answers failed" in said
    assert "intent, rules end at rationales.max_chars (60)" in said
    assert "always answering" not in said.lower() and "perspectives agree" not in said


def test_a_teacher_no_better_than_one_label_is_named(stage: dict[str, Any]) -> None:
    accuracy = stage["accuracy"] | {"all": 0.5, "majority": {"label": "E", "share": 0.6}}
    assert "Always answering E would be right on 60 %" in warnings(stage, accuracy=accuracy)
    assert "agree on 97 %" in warnings(stage, agreement=stage["agreement"] | {"unanimous": 0.97})


def test_the_page_escapes_all_texts_and_asks_for_nothing_outside(found: dict[str, Any], tmp_path: Path) -> None:
    page = write_page(found, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    targets = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert targets and all(target.startswith(("#", "data:")) for target in targets)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and {t[1:] for t in targets if t.startswith("#") and "-" in t} <= set(ids)


def test_the_page_shows_what_is_known_of_a_product(stage: dict[str, Any], found: dict[str, Any]) -> None:
    assert stage["samples"][0]["details"] == f"shade: {SCRIPT}."
    assert "shade: &lt;script" in render(found)


def test_the_page_holds_the_figures(found: dict[str, Any]) -> None:
    page = render(found)
    assert "5 of 7 with a gold label" in page and "4-samples has not been run" in page
    assert re.search(r"43 %<small>6 of 14</small>", page)


def test_a_stage_in_which_everything_failed_is_shown_too(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path)
    broken = [row | {"outcome": "failed", "verdict": None, "rationale": None, "reason": "empty"} for row in answers()]
    write_stage(run_dir, "4-samples", "samples", broken)
    found = collect(run_dir, 4)
    last = found["stages"][1]
    assert last["counts"]["failed"] == 16 and last["accuracy"]["all"] is None and last["conflicts"] == []
    assert "No rationale has a verdict" in render(found)


@pytest.mark.parametrize("width", [70, 160])
def test_the_terminal_shows_the_same(found: dict[str, Any], width: int) -> None:
    file = io.StringIO()
    show(found, Console(file=file, width=width))
    text = " ".join(file.getvalue().split())
    assert "16 answers on 8 pairs: 8 kept, 7 filtered, 1 failed." in text
    assert "[red]case[/red] 3" in text and "4-samples has not been run" in text
    assert all(len(line) <= width for line in file.getvalue().splitlines())
