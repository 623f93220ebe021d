"""`broadfast verify` names what is missing, doubled, unknown or changed in a run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.base.stage_folder import MANIFEST, read_json, write_json
from cluster.base.tables import read_table, write_table
from mpcot.records import PREFERENCE
from tests.helpers.command import broadfast, text
from workflows.stages import STAGES


def test_a_sound_run_folder_verifies(run_dir: Path, wide: None) -> None:
    result = broadfast("verify", run_dir)
    assert result.exit_code == 0, result.output
    assert result.output.count("yes") == 7


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    write_table(path, change(read_table(path)))


def without_first(table: pa.Table) -> pa.Table:
    return table.slice(1)


def first_twice(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table.slice(0, 1)])


def name_of(row: dict[str, object]) -> str:
    return f"{row['pair_id']}/{row['perspective']}/{row['sample']}" if "sample" in row else str(row["pair_id"])


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("2-rationales/kept.parquet", without_first, "answers: 1 lost, first {first}"),
        ("2-rationales/kept.parquet", first_twice, "answers: 1 ids occur twice, first {first}"),
        ("2-rationales/filtered.parquet", without_first, "answers: 1 lost, first {first}"),
        ("4-samples/filtered.parquet", first_twice, "answers: 1 ids occur twice, first {first}"),
        ("7-judgements/judgements.parquet", without_first, "judgements: 1 lost, first {first}"),
        ("7-judgements/judgements.parquet", first_twice, "judgements: 1 ids occur twice, first {first}"),
        ("1-pairs/pairs.parquet", first_twice, "pairs: 1 ids occur twice, first {first}"),
        ("1-pairs/pairs.parquet", without_first, "judgements: 1 unknown, first {first}"),
    ],
)
def test_rows_lost_or_doubled_are_named(run_dir: Path, wide: None, file: str, change: Callable, says: str) -> None:
    first = name_of(read_table(run_dir / file).slice(0, 1).to_pylist()[0])
    rewrite(run_dir / file, change)
    # Even where the manifest was made to fit, the ids do not balance.
    manifest = run_dir / Path(file).parts[0] / MANIFEST
    data = json.loads(manifest.read_text())
    data["files"][Path(file).name] = os.path.getsize(run_dir / file)
    manifest.write_text(json.dumps(data))
    result = broadfast("verify", run_dir)
    assert result.exit_code == 1
    assert says.format(first=first) in text(result)


@pytest.mark.parametrize(
    ("chosen", "rejected", "says"),
    [
        (True, False, ""),
        (True, True, "1 rejected answers are right, first made-up"),
        (False, False, "1 chosen answers are wrong, first made-up"),
    ],
)
def test_preferences_of_two_right_or_two_wrong_answers_are_named(
    run_dir: Path, wide: None, chosen: bool, rejected: bool, says: str
) -> None:
    pair = next(p for p in read_table(run_dir / "1-pairs" / "pairs.parquet").to_pylist() if p["split"] == "train")
    verdicts = {True: pair["label"], False: next(code for code in "ESCI" if code != pair["label"])}
    row = {"preference_id": "made-up", "pair_id": pair["pair_id"], "split": "train"}
    for side, right in (("chosen", chosen), ("rejected", rejected)):
        row |= {f"{side}_perspective": "intent", f"{side}_prompt": "Is it?", side: f"No.\nVerdict: {verdicts[right]}"}
    write_table(run_dir / "5-preferences" / "preferences.parquet", pa.Table.from_pylist([row], PREFERENCE))
    said = text(broadfast("verify", run_dir))
    assert "the manifest says 0" in said and "no reference log-probabilities" in said
    assert says in said if says else "answers are" not in said


def test_the_ledger_holds_what_was_asked_with_a_hint(
    config_file: Path, tmp_path: Path, without_ray: None, wide: None
) -> None:
    run_dir = tmp_path / "hinted"
    changes = ("--set", "rationales.hinted_retry=true", "--set", "engine.accuracy=0.3")
    first = broadfast("run", config_file, "--to", "rationales", *changes, "--out", run_dir)
    assert first.exit_code == 0, first.output
    folder = run_dir / "2-rationales"
    figures = read_json(folder / MANIFEST)["figures"]
    assert figures["hinted"]["requested"] == 3 * figures["hinted"]["pairs"] > 0 and figures["reused"] == 0
    assert broadfast("verify", run_dir).exit_code == 0
    again = broadfast("run", config_file, "--from", "rationales", "--to", "rationales", *changes, "--out", run_dir)
    assert again.exit_code == 0, again.output
    assert read_json(folder / MANIFEST)["figures"] == figures | {"asked": 0, "reused": figures["asked"], "engine": {}}
    hinted = read_table(folder / "requested-hinted.parquet")
    write_table(folder / "requested-hinted.parquet", hinted.slice(1))
    lost = broadfast("verify", run_dir)
    assert lost.exit_code == 1 and "answers: 1 unknown" in text(lost)


def test_a_row_that_nobody_asked_for_is_named(run_dir: Path, wide: None) -> None:
    def foreign(table: pa.Table) -> pa.Table:
        row = table.slice(0, 1).to_pylist()[0] | {"key": "made-up"}
        return pa.concat_tables([table.slice(1), pa.Table.from_pylist([row], table.schema)])

    rewrite(run_dir / "2-rationales" / "kept.parquet", foreign)
    result = broadfast("verify", run_dir)
    assert result.exit_code == 1 and "1 unknown, first made-up" in text(result) and "1 lost" in text(result)


def test_files_missing_or_changed_are_named(run_dir: Path, wide: None) -> None:
    (run_dir / "2-rationales" / "filtered.parquet").unlink()
    (run_dir / "3-sft" / "model" / "model.safetensors").write_bytes(b"")
    (run_dir / "6-dpo" / MANIFEST).unlink()
    (run_dir / "7-judgements" / "judgements.parquet").write_bytes(b"not parquet")
    result = broadfast("verify", run_dir)
    assert result.exit_code == 1 and "Traceback" not in result.output
    lines = {s.name: next(line for line in result.output.splitlines() if f" {s.name} " in line) for s in STAGES[:7]}
    assert "filtered.parquet is missing" in lines["2-rationales"]
    assert "model/model.safetensors has 0 bytes" in lines["3-sft"]
    assert "has not finished" in lines["6-dpo"]
    assert "judgements.parquet has 11 bytes" in text(result)
    assert "yes" in lines["1-pairs"]


def test_an_input_made_again_is_named(run_dir: Path, wide: None) -> None:
    data = read_json(run_dir / "3-sft" / MANIFEST)
    write_json(run_dir / "3-sft" / MANIFEST, data | {"fingerprint": "another"})
    result = broadfast("verify", run_dir)
    assert result.exit_code == 1 and "3-sft was made again after this stage read it" in text(result)
