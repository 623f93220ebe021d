"""The report's numbers on a made-up run whose figures can be worked out by hand (see tests/helpers/report_run.py).

Test pairs are n = 52 to 75: 24 pairs of 6 queries, 6 of each label, labels by n % 4.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cluster.base.errors import UserError
from distill.report.quality import conclusions
from distill.report.report_data import alignment, collect, count_by, samples
from distill.report.stage import run
from tests.helpers.report_run import NAMES, SCRIPT, report_stage, write_run


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return collect(report_stage(), write_run(tmp_path_factory.mktemp("run")))


def test_every_judge_is_measured_on_the_same_test_pairs(report):
    found = report["headline"]
    assert (found["test_pairs"], found["pairs"], found["queries"]) == (24, 24, 6)
    accuracy = {name: row["accuracy"] for name, row in found["judges"].items()}
    # wrong: 4 with n % 6 == 0, 6 with n % 4 == 0, 8 with n % 3 == 0, and all but one label's 6
    assert accuracy == pytest.approx({"teacher": 20 / 24, "lrkd": 18 / 24, "ce_only": 16 / 24, "majority": 6 / 24})
    assert {row["pairs"] for row in found["judges"].values()} == {24}
    # every E (n % 4 == 0) is answered C: E never found, C's precision one half, S and I perfect
    assert found["judges"]["lrkd"]["macro_f1"] == pytest.approx((0 + 1 + 2 / 3 + 1) / 4)
    assert found["judges"]["lrkd"]["confusion"][0] == [0, 0, 6, 0]


def test_how_labels_are_missed_and_what_one_person_reaches(report):
    found = report["headline"]
    sides = {
        name: {code: (label["over"], label["under"]) for code, label in found["judges"][name]["per_label"].items()}
        for name in ("teacher", "lrkd")
    }
    assert sides["lrkd"] == {"E": (0, 1), "S": (0, 0), "C": (0, 0), "I": (0, 0)}
    assert sides["teacher"] == {"E": (0, 2 / 6), "S": (0, 0), "C": (0, 2 / 6), "I": (0, 0)}
    # Gold has each label on a quarter, LRKD has no E: chance gives a quarter.
    assert found["judges"]["lrkd"]["kappa"] == pytest.approx((0.75 - 0.25) / 0.75)
    # Of S S C, each S sees one of either label and C sees two of S: 1 of 3. Chance gives 10 / 36.
    assert found["ceiling"] == {"pairs": 12, "accuracy": pytest.approx(1 / 3), "kappa": pytest.approx(1 / 13)}


def test_the_difference_is_lrkd_minus_labels_only(report):
    difference = report["headline"]["differences"]["accuracy"]
    assert difference["difference"] == pytest.approx(2 / 24)
    assert difference["low"] <= 2 / 24 <= difference["high"]
    assert difference["queries"] == 6 and difference["samples"] == 200


def test_a_low_skill_of_the_alignment_is_said(report):
    assert report["alignment"]["skill"] == 0.05
    assert "is 0.050. Below 0.1, the pairs' own rationales count as not learnt" in report["alignment"]["says"]
    learnt = alignment([{"split": "dev", "step": 9, "alignment_skill": 0.1, "kept": True}])
    assert learnt is not None and "At 0.1 and above" in learnt["says"]
    assert alignment([{"split": "dev", "step": 9, "kept": True}]) is None


def test_biases_that_are_served_are_in_the_figures(tmp_path, report):
    folder = write_run(tmp_path)
    manifest = tmp_path / "10-export/manifest.json"
    described = json.loads(manifest.read_text())
    described["figures"]["label_bias"] = {"E": 0.1, "S": -0.1, "C": 0.0, "I": 0.0}
    manifest.write_text(json.dumps(described))
    found = collect(report_stage(), folder)
    assert found["biased"] and not report["biased"]
    # LRKD answers half its C wrongly, so it is less sure of them; the teacher is no student and stays as it was.
    said = found["samples"][0]["students"]["lrkd"]
    assert said["probabilities"] != report["samples"][0]["students"]["lrkd"]["probabilities"]
    assert found["headline"]["judges"]["teacher"]["auc"] == report["headline"]["judges"]["teacher"]["auc"]


def differing(low, high):
    judge = {"accuracy": 0.5}
    d = {"difference": (low + high) / 2, "low": low, "high": high, "confidence": 0.95}
    return {
        "pairs": 9, "test_pairs": 10, "queries": 30, "differences": {"accuracy": d, "macro_f1": d},
        "judges": {"teacher": {"accuracy": 0.75}, "lrkd": judge, "majority": {"accuracy": 0.5, "label": "E"}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.01, 0.03, "LRKD beats labels only in accuracy here: difference +2.0 points, 95 % interval +1.0 to +3.0."),
        (-0.03, -0.01, "LRKD does worse than labels only in accuracy here: difference -2.0 points"),
        (-0.01, 0.03, "The data does not tell LRKD and labels only apart in accuracy here: difference +1.0 points"),
        (0.0, 0.02, "The data does not tell LRKD and labels only apart in accuracy here"),
    ],
)
def test_the_sentence_says_no_more_than_the_interval(low, high, said):
    sentences = conclusions(differing(low, high))
    assert sentences[0].startswith(said)
    assert "Teacher, vote: 25.0 points of accuracy above always answering E." in sentences
    assert "Student, LRKD: exactly as accurate as always answering E." in sentences
    assert sentences[-1].startswith("1 of 10 test pairs are left out")


def test_a_run_too_small_to_judge_quality_says_so_first():
    few = conclusions(differing(0.01, 0.03) | {"queries": 3})
    assert few[0].startswith(
        "This run is too small to judge quality: of 9 test pairs of 3 queries, one pair is worth 11.1"
    )
    assert few[1:] == [said.replace("30 queries", "3 queries") for said in conclusions(differing(0.01, 0.03))], (
        "the sentences themselves stay"
    )


def test_a_pair_that_the_teacher_did_not_judge_is_left_out_for_everybody(tmp_path):
    import pyarrow.parquet as pq

    folder = write_run(tmp_path)
    path = tmp_path / "7-judgements" / "judgements.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 4), path)
    found = collect(report_stage(), folder)["headline"]
    assert (found["test_pairs"], found["pairs"]) == (24, 20)
    assert {row["pairs"] for row in found["judges"].values()} == {20}
    assert any("4 of 24 test pairs are left out" in said for said in found["conclusions"])


def test_each_perspective_is_measured_on_the_pairs_it_answered(report):
    rows = {row["name"]: row for row in report["teacher"]}
    assert list(rows) == [*NAMES, "vote"]
    assert [row["pairs"] for row in rows.values()] == [21, 24, 24, 24]
    assert rows["rules"]["accuracy"] == pytest.approx(16 / 24)  # wrong where n % 6 is 0 or 1
    # n = 53, 61, 69 have no intent verdict and none of them is wrong
    assert rows["intent"]["accuracy"] == pytest.approx(17 / 21)


def test_the_teacher_is_followed_from_untrained_to_dpo_on_the_same_pairs(report):
    rows = {(row["split"], row["perspective"]): row for row in report["teacher_by_stage"]}
    assert {split for split, _ in rows} == {"train", "dev"}, "the untrained model was not asked about test pairs"
    held_out = rows["dev", "attributes"]  # n = 40 to 51
    found = {model: (held_out[model]["answers"], held_out[model]["accuracy"]) for model in ("untrained", "sft", "dpo")}
    assert found == {"untrained": (12, 0.5), "sft": (12, 0.75), "dpo": (12, pytest.approx(10 / 12))}
    # pair 1 has no untrained intent answer, so the others are not counted on it either
    assert rows["train", "intent"]["sft"]["answers"] == 39
    assert rows["dev", "all"]["untrained"]["answers"] == 36


def test_agreement_counts_pairs_that_both_judged(report):
    matrix = report["agreement"]["matrix"]
    assert [matrix[i][i] for i in range(3)] == [1.0, 1.0, 1.0]
    assert matrix[1][2] == matrix[2][1] == pytest.approx(20 / 24)  # rules alone is wrong where n % 6 == 1
    assert matrix[0][2] == pytest.approx(18 / 21)  # n = 61 of the four has no intent verdict
    assert report["agreement"]["unanimous"] == pytest.approx(18 / 21)


def test_kept_rates_and_reasons(report):
    found = report["answers"]["2-rationales"]
    assert found["counts"] == {"kept": 77, "filtered": 78, "failed": 1}
    cells = {(cell["perspective"], cell["label"]): (cell["kept"], cell["asked"]) for cell in found["kept"]}
    assert cells["intent", "E"] == (0, 13) and cells["rules", "S"] == (13, 13)
    assert cells["intent", "S"] == (12, 13), "a failed answer was asked for, too"
    assert found["filtered"] == {"not the gold label": 78}
    assert found["failed"] == {"the prompt is too long": 1}


def test_data_stages_and_curves(report):
    assert report["data"]["splits"]["test"] == {"pairs": 24, "queries": 6, "labels": dict.fromkeys("ESCI", 6)}
    assert "unlabelled" not in report["data"]["splits"]
    assert report["data"]["failed"] == {"the title is blank": 2} and report["data"]["seeds"] == {"catalogue": 1}
    assert [row["stage"] for row in report["stages"]][::9] == ["1-pairs", "10-export"]
    assert report["stages"][2]["counts"] == {"rows_written": 1002}
    first = report["curves"]["dpo"][0]
    assert (first["step"], first["split"], first["loss"], first["margin"]) == (0, "dev", 0.693, 0.0)


def test_samples_take_labels_in_turn_whoever_is_right(report):
    assert [sample["label"] for sample in report["samples"]] == ["E", "S", "C", "I", "E"]
    second = report["samples"][1]
    assert second["pair_id"] == "p053" and second["students"]["lrkd"]["label"] == "S"
    assert second["perspectives"][0] == {"name": "intent", "verdict": None, "rationale": None}
    assert SCRIPT in report["samples"][0]["title"]


def test_samples_end_when_the_test_pairs_do(report):
    pairs = {"a": {"split": "test", "label": "E", "pair_id": "a", "query": "q", "title": "t", "brand": None}}
    judged = {"a": {"vote": "E", "agreement": 1.0, "verdicts": ["E"], "rationales": ["so"]}}
    assert [s["pair_id"] for s in samples(pairs, judged, {}, ["intent"], 5)] == ["a"]


def test_without_baseline_and_without_conflicts(tmp_path):
    report = collect(report_stage(), write_run(tmp_path, baseline=False, preferences=False))
    assert set(report["headline"]["judges"]) == {"teacher", "lrkd", "majority"}
    assert report["headline"]["differences"] == {}
    assert "nothing to compare LRKD with" in " ".join(report["headline"]["conclusions"])
    assert set(report["curves"]) == {"sft", "lrkd"}


def test_an_unfinished_stage_is_named(tmp_path):
    folder = write_run(tmp_path)
    (tmp_path / "7-judgements" / "manifest.json").unlink()
    with pytest.raises(UserError, match="7-judgements has no manifest"):
        collect(report_stage(), folder)


def test_a_missing_student_is_named(tmp_path):
    folder = write_run(tmp_path)
    shutil.rmtree(tmp_path / "9-student" / "lrkd")
    with pytest.raises(UserError, match="run 9-student again"):
        collect(report_stage(), folder)


def test_rare_reasons_become_one_line():
    rows = [{"reason": f"r{i}"} for i in range(20)] + [{"reason": "often"}] * 3
    found = count_by(rows, "reason", most=5)
    assert next(iter(found)) == "often" and found["16 other values"] == 16
    assert sum(found.values()) == 23


def test_the_stage_writes_page_json_and_manifest(tmp_path: Path):
    folder = write_run(tmp_path / "run", tiny=tmp_path / "bert")
    run(report_stage(), folder)
    written = json.loads((folder.path / "report.json").read_text())
    manifest = folder.manifest()
    assert manifest is not None and set(manifest["files"]) == {"report.html", "report.json"}
    assert manifest["figures"]["lrkd"]["accuracy"] == written["headline"]["judges"]["lrkd"]["accuracy"] == 0.75
    latency = written["latency"]
    assert len(latency["single_ms"]) == 20 and len(latency["batch_ms"]) == 2
    assert 0 < latency["p50_ms"] <= latency["p90_ms"] <= latency["p99_ms"] <= max(latency["single_ms"])
    assert latency["pairs_per_second"] == pytest.approx(1000 * 32 / (sum(latency["batch_ms"]) / 2))
