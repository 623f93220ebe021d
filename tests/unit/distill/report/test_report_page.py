"""The page says what the data says, escapes it, and leaves out what there is nothing to show of."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from rich.console import Console

from cluster.base.stage_folder import write_json
from cluster.pages.html import duration, figure, percent, signed, whole
from distill.report import plots
from distill.report.report_data import collect
from distill.report.report_page import draw, render
from distill.report.terminal import show_report
from tests.helpers.report_run import STAGES, report_folder, report_stage, write_run

LATENCY = {
    "single_ms": [3.0, 4.0, 50.0], "p50_ms": 4.0, "p90_ms": 40.0, "p99_ms": 49.0, "batch_pairs": 32,
    "batch_ms": [80.0], "pairs_per_second": 400.0, "device": "CPU", "threads": 2, "precision": "fp32",
}  # fmt: skip


MEASURED = {"latency": LATENCY, "explanations": None}
EXPLANATIONS = {
    "pairs": 24, "conclusion": "The rationale that the student shows is better.",
    "verdicts": {"student": 0.7, "label": 0.6, "majority": 0.5},
    "shown": {
        way: {"verdict": 0.71, "label": 0.62, "true": 0.33}
        for way in ("latent_and_verdict", "latent", "title_and_verdict", "title")
    } | {"random": {"verdict": 0.44, "label": 1.0, "true": None}},
}  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return collect(report_stage(), write_run(tmp_path_factory.mktemp("run"))) | {
        "latency": LATENCY,
        "explanations": None,
    }


def test_texts_of_the_data_are_escaped(report):
    page = render(report)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page


def test_the_page_asks_for_nothing_outside(report):
    page = render(report)
    targets = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert targets and all(target.startswith(("#", "data:")) for target in targets)
    assert "url(http" not in page and "@import" not in page


def test_the_headline_table_holds_the_numbers(report):
    rows = re.findall(
        r'<tr[^>]*><th scope="row">(Student, LRKD|Teacher, vote)</th>(.*?)</tr>', render(report), re.DOTALL
    )
    cells = {name: re.findall(r"<td>(.*?)</td>", row) for name, row in rows}
    assert cells["Student, LRKD"][:2] == ["0.750", "0.667"]
    assert cells["Teacher, vote"][0] == "0.833"


def test_explanations_have_a_table_where_there_are_any(report):
    page = render(report | {"explanations": EXPLANATIONS})
    assert EXPLANATIONS["conclusion"] in page and 'href="#explanations"' in page
    shown = page.split('aria-label="What the shown rationales are worth"')[1].split("</table>")[0]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in shown.split("<tbody>")[1].split("</tr>")[:-1]]
    assert rows == [["71 %", "62 %", "33 %"]] * 4 + [["44 %", "100 %", "–"]]
    assert "#explanations" not in render(report | {"explanations": None})


def test_kappa_the_ceiling_and_over_rating_are_on_the_page(report):
    page = render(report)
    ceiling = re.search(r'<th scope="row">One person, beside the others(.*?)</tr>', page, re.DOTALL)
    assert ceiling is not None and re.findall(r"<td>(.*?)</td>", ceiling[1])[:3] == ["0.333", "–", "0.077"]
    missed = page.split('aria-label="Over- and under-rating by label"')[1].split("</table>")[0]
    row = missed.split('<th scope="row">E ')[1].split("</tr>")[0]
    assert re.findall(r"<td>(.*?)</td>", row)[:5] == ["6", "0 %", "33 %", "0 %", "100 %"]
    alone = render(report | {"headline": report["headline"] | {"ceiling": None}})
    assert "One person" not in alone and "several people" not in alone


def test_the_terminal_shows_the_same(report, tmp_path, capsys):
    write_json(tmp_path / "report.json", report)
    show_report(tmp_path, Console(width=160))
    said = re.sub(r"[^\S\n]+", " ", capsys.readouterr().out)
    assert re.search(r"Student, LRKD . 0.750 . 0.667 . 0.667 .", said)
    assert re.search(r"One person, beside the others . 0.333 . – . 0.077 .", said)
    assert re.search(r"gold E . 0 % / 33 % . 0 % / 100 % .", said)
    assert f"report: {tmp_path / 'report.html'}" in said.replace("\n", "")


def test_ids_are_unique_so_that_plots_do_not_share_definitions(report):
    ids = re.findall(r'\bid="([^"]+)"', render(report))
    assert ids and len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("skipped", "models"), [(STAGES[1:6], None), (STAGES[3:6], ["untrained", "SFT"]), ((), ["untrained", "SFT", "DPO"])]
)
def test_stages_that_the_run_does_not_have_have_no_section(tmp_path, skipped, models):
    """A teacher that is not tuned has no rationales; one without DPO is the SFT model in every figure."""
    write_run(tmp_path)
    left = [stage for stage in STAGES if stage not in skipped]
    report = collect(report_stage(), report_folder(tmp_path, left)) | MEASURED
    page = render(report)
    assert ("Rationales kept" in page) is ('href="#rationales"' in page) is bool(models)
    assert [row["stage"] for row in report["stages"]] == left and list(report["answers"]) == [
        stage for stage in ("2-rationales", "4-samples") if stage in left
    ]
    assert set(draw(report)) >= {"headline", "student"} and ("dpo" in draw(report)) is ("6-dpo" in left)
    assert "No DPO took place" not in page
    said = re.search(r'<th scope="col" class="of-text">perspective</th>(.*?)</tr>', page)
    assert (re.findall(">(\\w+)<", said[1]) if said else None) == (models and models * 3)
    if models == ["untrained", "SFT"]:  # on train the trained teacher is right as often as in the whole report
        whole = collect(report_stage(), report_folder(tmp_path))["teacher_by_stage"]
        assert [row["sft"] for row in report["teacher_by_stage"]] == [row["dpo"] for row in whole]


def test_what_is_absent_is_not_drawn(tmp_path):
    report = collect(report_stage(), write_run(tmp_path, baseline=False, preferences=False)) | {
        "latency": None,
        "explanations": None,
    }
    assert set(draw(report)) == {"headline", "sft", "student", "macro_f1", "ratio", "skill"}
    page = render(report)
    assert "No DPO" in page and "LRKD minus labels only" not in page and "Not measured" in page


def test_an_undefined_ndcg_is_said(report):
    judges = {name: {**row, "ndcg_at_10": None} for name, row in report["headline"]["judges"].items()}
    page = render(report | {"headline": {**report["headline"], "judges": judges}})
    assert "NDCG@10 does not apply" in page


def test_a_plot_is_well_formed_keeps_its_text_and_takes_its_colours_from_the_page():
    text = plots.curves("loss", "Loss falls & <stays>", "loss", {"SFT, dev": [(0, 2.0), (10, 1.0)]})
    root = ElementTree.fromstring(text.replace("xlink:href", "href"))
    words = [node.text for node in root.iter() if node.tag.endswith("text")]
    assert "optimizer step" in words and "SFT, dev" in words
    assert "Loss falls &amp; &lt;stays&gt;" in text
    assert "var(--s1)" in text and "#0102" not in text
    assert "width=" not in text.split(">", 1)[0]


def test_the_margin_plot_needs_a_margin(report):
    assert "margin" in draw(report)
    history = [{k: v for k, v in row.items() if k != "margin"} for row in report["curves"]["dpo"]]
    assert "margin" not in draw(report | {"curves": {**report["curves"], "dpo": history}})


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (figure(None), "–"),
        (figure(0.12345), "0.123"),
        (percent(0.256), "26 %"),
        (signed(-0.031), "-3.1 points"),
        (whole(12345), "12\u2009345"),
        (duration(4.25), "4.2 s"),
        (duration(185), "3 min 05 s"),
        (duration(3725), "1 h 02 min"),
    ],
)
def test_numbers_as_people_read_them(shown, expected):
    assert shown == expected
