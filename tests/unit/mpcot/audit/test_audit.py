"""Disputed labels of a made-up run (see tests/helpers/audit_run.py): found, ranked, shown, and made into tasks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.base.errors import UsageError
from mpcot.audit.audit_data import JudgedRun, collect
from mpcot.audit.audit_page import write_page
from mpcot.audit.disputes import Dispute, find_disputes
from mpcot.audit.label_studio import interface, write_tasks
from mpcot.audit.terminal import show
from mpcot.schemes.scheme import load_scheme
from tests.helpers.audit_run import GOLD, IDS, NAMES, SCRIPT, judgements, write_run
from workflows.cli import app

ESCI = load_scheme("esci")
LABELS = dict(zip(IDS, GOLD, strict=True))


def test_sure_and_unanimous_disputes_are_ranked_by_their_margin() -> None:
    found = find_disputes(judgements(), LABELS, ESCI)
    assert found.found == [
        Dispute(IDS[2], "I", "E", pytest.approx(0.88)),
        Dispute(IDS[1], "S", "I", pytest.approx(0.55)),
    ]
    assert found.counts == {"judged": 6, "agreed": 4, "against": 3, "disputed": 2}


@pytest.mark.parametrize(("least", "places"), [(0.0, [2, 1, 4]), (0.56, [2]), (0.9, [])])
def test_the_least_score_decides_what_is_sure(least: float, places: list[int]) -> None:
    found = find_disputes(judgements(), LABELS, ESCI, least)
    assert [one.pair_id for one in found.found] == [IDS[place] for place in places]
    assert found.counts["against"] == 3 and found.counts["disputed"] == len(places)


def test_nothing_is_disputed_where_nothing_is_known() -> None:
    assert find_disputes(judgements(), {}, ESCI).counts == {"judged": 0, "agreed": 0, "against": 0, "disputed": 0}
    assert find_disputes([], LABELS, ESCI).found == []


def test_the_run_is_gathered_with_texts_and_counts(tmp_path: Path) -> None:
    found = collect(JudgedRun.open(write_run(tmp_path)), top=1, least=0.5)
    assert found["counts"] == {"gold": 6, "looked_at": 0, "judged": 6, "agreed": 4, "against": 3, "disputed": 2}
    assert found["confusion"] == {"E": [0, 0, 0, 0], "S": [0, 0, 0, 1], "C": [0, 0, 0, 0], "I": [1, 0, 0, 0]}
    (pair,) = found["disputes"]
    assert (pair["query"], pair["gold"], pair["verdict"], pair["split"]) == ("red lamp 2", "I", "E", "train")
    assert pair["details"] == "colour: blue. A lamp." and list(pair["rationales"]) == list(NAMES)


def test_a_label_that_people_have_looked_at_is_not_shown_again(tmp_path: Path) -> None:
    overrides = tmp_path / "overrides.jsonl"
    overrides.write_text(json.dumps({"pair_id": IDS[2], "label": "I"}) + "\n")
    found = collect(JudgedRun.open(write_run(tmp_path / "run", overrides)), top=9, least=0.5)
    assert [pair["pair_id"] for pair in found["disputes"]] == [IDS[1]]
    assert found["counts"]["looked_at"] == 1 and found["counts"]["judged"] == 5


def test_tasks_have_what_label_studio_and_the_import_need(tmp_path: Path) -> None:
    found = collect(JudgedRun.open(write_run(tmp_path)), top=9, least=0.5)
    first, second = json.loads(write_tasks(found, tmp_path / "audit").read_text())
    assert first["data"] == {
        "pair_id": IDS[2], "query": "red lamp 2", "product_id": "x2", "locale": "us", "gold": "I",
        "product": f"lamp 2 {SCRIPT}\nGlow\ncolour: blue. A lamp.",
        "rationales": "\n".join(f"{name}: [red]{SCRIPT}[/red] because it is E." for name in NAMES),
    }  # fmt: skip
    (prediction,) = second["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("models/tiny", 0.55)
    view = ElementTree.parse(tmp_path / "audit" / "label-studio.xml").getroot()
    (choices,) = view.iter("Choices")
    (result,) = prediction["result"]
    assert (result["from_name"], result["to_name"]) == (choices.get("name"), choices.get("toName"))
    assert choices.get("toName") in {text.get("name") for text in view.iter("Text")}
    assert result["value"]["choices"] == ["I"]
    asked = {str(element.get("value")).removeprefix("$") for element in view if element.tag in ("Header", "Text")}
    assert asked <= first["data"].keys(), "each field of the interface is in the tasks"


def test_the_interface_has_a_choice_per_label() -> None:
    view = ElementTree.fromstring(interface(ESCI.model_dump()))
    choices = [(choice.get("value"), choice.get("hint")) for choice in view.iter("Choice")]
    assert choices == [(label.code, f"{label.name}: {label.meaning}") for label in ESCI.labels]


def test_the_page_escapes_texts_and_ranks(tmp_path: Path) -> None:
    page = write_page(collect(JudgedRun.open(write_run(tmp_path)), top=9, least=0.5), tmp_path).read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert re.findall(r"<q>(.*?)</q>", page) == ["red lamp 2", "red lamp 1"]
    assert "0.88" in page and "0.55" in page
    assert page.count("People said") == page.count("<dt>People said</dt><dd>E, E, I</dd>") == 1
    few = write_page(collect(JudgedRun.open(tmp_path), top=1, least=0.5), tmp_path).read_text()
    assert "The first 1 of 2." in few
    none = write_page(collect(JudgedRun.open(tmp_path), top=1, least=0.9), tmp_path).read_text()
    assert "There is no such pair." in none


def test_the_terminal_names_the_pairs_and_reads_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(collect(JudgedRun.open(write_run(tmp_path)), top=9, least=0.5), Console(width=200))
    said = capsys.readouterr().out
    assert "6 pairs with a gold label were judged; on 4 all perspectives agree, on 3 against the label" in said
    assert re.search(r"0\.88 +I +E +red lamp 2 +lamp 2 <script>alert\(1\)</script> +\[red\]", said)


def test_a_run_that_has_not_judged_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        JudgedRun.open(tmp_path)
    (write_run(tmp_path) / "7-judgements" / "manifest.json").unlink()
    with pytest.raises(UsageError, match="7-judgements is not finished: run broadfast with --to judgements"):
        JudgedRun.open(tmp_path)


def test_the_command_writes_page_and_tasks_and_takes_labels_back(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = CliRunner().invoke(app, ["audit", str(tmp_path), "--top", "1"])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "audit").iterdir()) == [
        "audit.html", "label-studio.xml", "tasks.json",
    ]  # fmt: skip
    table = tmp_path / "corrected.csv"
    table.write_text("pair_id,label\n" + f"{IDS[2]},E\n{IDS[1]},\n")
    done = CliRunner().invoke(app, ["audit", str(tmp_path), "--import", str(table)])
    assert done.exit_code == 0 and "1 labels changed, 0 confirmed" in done.output
    (row,) = (tmp_path / "audit" / "overrides.jsonl").read_text().splitlines()
    assert json.loads(row) == {
        "pair_id": IDS[2], "query": "red lamp 2", "product_id": "x2", "locale": "us", "label": "E",
    }  # fmt: skip
