"""ONNX: the graph answers like the student in batches of any size, and onnxruntime needs nothing of ours for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import read_json
from distill.config import GatExtractor, MlpExtractor
from distill.formats.int8 import write_int8
from distill.formats.onnx_graph import OnnxStudent, answers, largest_differences, write_onnx
from distill.formats.pairs import FIXED, RunPairs
from distill.student.model import Student, load_tokenizer
from mpcot.temperature import scaled
from tests.helpers.command import broadfast, text
from tests.helpers.format_run import BIAS, format_run, with_latents

pytest.importorskip("onnxruntime")
# What somebody writes who has onnxruntime and tokenizers, and nothing of this project.
STRANGER = """
import json, sys
import numpy, onnxruntime, tokenizers

folder = sys.argv[1]
told = json.load(open(f"{folder}/onnx.json"))
tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
found = tokenizer.encode_batch([("red phone case", "blue lamp"), ("mug", "red mug " * 40), ("a", "b")])
columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
feeds = {name: numpy.array([getattr(one, columns[name]) for one in found]) for name in told["inputs"]}
assert max(map(len, feeds["input_ids"])) == told["max_tokens"]
answers = onnxruntime.InferenceSession(f"{folder}/{told['graph']}").run(list(told["outputs"]), feeds)
assert not [name for name in sys.modules if name.split(".")[0] in ("distill", "serve", "torch", "transformers")]
print(json.dumps(dict(zip(told["outputs"], [one.tolist() for one in answers]))))
"""


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return format_run(tmp_path_factory.mktemp("run"), with_latents())


@pytest.fixture(scope="module")
def folder(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("onnx")
    told = write_onnx(export, target)
    assert told == read_json(target / "onnx.json") and max(told["largest_difference"].values()) < 1e-5
    return target


def test_a_stranger_gets_the_students_answers(export: Path, folder: Path) -> None:
    pairs = [
        {"query": "red phone case", "title": "blue lamp"},
        {"query": "mug", "title": "red mug " * 40},
        {"query": "a", "title": "b"},
    ]
    ran = subprocess.run(
        [sys.executable, "-c", STRANGER, str(folder)], cwd=folder, env={}, check=True, capture_output=True, timeout=300
    )
    found = json.loads(ran.stdout)
    for name, values in answers(Student.load(export), load_tokenizer(export), pairs).items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("count", [1, 2, 5, 33])
def test_any_number_of_pairs_and_tokens(export: Path, folder: Path, count: int) -> None:
    pairs = (FIXED * 5)[-count:]
    student, tokenizer = Student.load(export), load_tokenizer(export)
    differences = largest_differences(student, tokenizer, folder / "model.onnx", pairs)
    assert set(differences) == {"score", "probabilities", "verdicts", "latents"}
    assert max(differences.values()) < 1e-5


def test_probabilities_are_those_that_are_served(export: Path, folder: Path) -> None:
    student, tokenizer = Student.load(export), load_tokenizer(export)
    found = OnnxStudent(folder / "model.onnx", tokenizer, student.config)(FIXED)
    from distill.student.predict import predict

    plain = predict(student, tokenizer, FIXED).probabilities
    np.testing.assert_allclose(found["probabilities"], scaled(plain, 1.7, BIAS), atol=1e-5)
    np.testing.assert_allclose(
        found["score"], found["probabilities"] @ np.array(student.config.scheme.unit_gains), atol=1e-5
    )


@pytest.mark.parametrize("extractor", [None, MlpExtractor(hidden=8), GatExtractor(heads=2, layers=1)], ids=str)
def test_every_kind_of_student(extractor: object, tmp_path: Path) -> None:
    told = write_onnx(format_run(tmp_path / "run", extractor), tmp_path / "onnx")  # type: ignore[arg-type]
    assert set(told["outputs"]) == ({"score", "probabilities"} if extractor is None else {*told["outputs"]})
    assert ("latents" in told["outputs"]) == (extractor is not None)
    assert max(told["largest_difference"].values()) < 1e-5


def test_int8_is_calibrated_and_says_what_it_costs(export: Path, folder: Path) -> None:
    figures = write_int8(export, folder, RunPairs(export.parent))
    assert figures["calibration_pairs"] == 96 and figures["test_pairs"] == 40
    assert figures["mean_score_difference"] < 0.1 and figures["labels_kept"] > 0.7
    assert abs(figures["macro_f1_lost"]) < 0.3
    assert read_json(folder / "onnx.json")["int8"] == figures
    config = Student.load(export).config
    found = OnnxStudent(folder / "model-int8.onnx", load_tokenizer(export), config)(FIXED)
    plain = OnnxStudent(folder / "model.onnx", load_tokenizer(export), config)(FIXED)
    assert np.abs(found["score"] - plain["score"]).max() > 0, "it is quantised"


def test_the_command(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    done = broadfast("export", export, "--to", "onnx", "--out", tmp_path / "x")
    assert done.exit_code == 0 and "one graph, at most" in text(done)
    assert "say with --to which format" in text(broadfast("export", export))
    lost = broadfast("export", export, "--to", "onnx", "--int8", "--run", tmp_path, "--out", tmp_path / "y")
    assert lost.exit_code == 1 and "Name the run folder that has the pairs" in text(lost)
    with pytest.raises(UserError, match="not a student's folder"):
        write_onnx(tmp_path, tmp_path / "z")
