from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from safetensors.numpy import load_file, save_file

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder, read_manifest
from cluster.base.tables import read_table, write_table
from cluster.config import TrainSettings
from distill import export
from distill.config import ExportSettings, ExportStage, MlpExtractor, StudentSettings, StudentStage
from distill.lrkd import stage as lrkd
from distill.metrics import evaluate
from distill.student.model import Student, load_tokenizer, read_student_config
from distill.student.predict import predict
from distill.student.rationale_index import AT_A_TIME, RationaleIndex
from distill.student.reference import REFERENCE, histogram, read_reference
from mpcot.config import PerspectiveSettings
from mpcot.sources.config import LabelSettings
from mpcot.temperature import scaled
from serve.config import ServeSettings
from serve.scoring.scorer import Scorer
from tests.helpers.lrkd_tasks import BARE

NAMES = ("intent", "rules")
LABELS = LabelSettings(scheme="binary")
Stage = Callable[..., StageFolder]
Export = Callable[..., StageFolder]


@pytest.fixture
def exported(encoder: Path, stage: Stage, trained_without_ray: list[str]) -> Export:
    """Train both students, then return what runs the export stage."""
    student = StudentSettings(
        model=str(encoder),
        max_tokens=32,
        extractor=MlpExtractor(hidden=8),
        **BARE,
        train=TrainSettings(epochs=1, learning_rate=1e-3, global_batch=8, micro_batch=8, precision="fp32"),
    )
    names = PerspectiveSettings(names=NAMES)
    lrkd.run(StudentStage(seed=1, labels=LABELS, perspectives=names, student=student), stage("9-student"))

    def make(**settings: object) -> StageFolder:
        folder = stage("10-export")
        own = ExportSettings(**settings)  # type: ignore[arg-type]
        export.run(ExportStage(name="shop", labels=LABELS, export=own), folder)
        return folder

    return make


def test_the_export_judges_as_the_trained_student(exported: Export) -> None:
    folder = exported()
    manifest = read_manifest(folder.path)
    assert manifest is not None and 0 <= manifest["figures"]["largest_logit_difference"] <= 1e-4
    predicted = read_table(folder.run_dir / "9-student/lrkd/predictions.parquet").to_pylist()
    pairs = {row["pair_id"]: row for row in read_table(folder.run_dir / "1-pairs/pairs.parquet").to_pylist()}
    found = predict(Student.load(folder.path), load_tokenizer(folder.path), [pairs[p["pair_id"]] for p in predicted])
    np.testing.assert_allclose(found.probabilities, [p["probabilities"] for p in predicted], atol=1e-4)


def test_the_card_holds_the_figures(exported: Export) -> None:
    folder = exported()
    manifest = read_manifest(folder.path)
    assert manifest is not None
    figures, card = manifest["figures"]["test"], (folder.path / "README.md").read_text()
    assert figures["pairs"] == 16 and figures["majority"]["accuracy"] == 0.75
    assert f"| accuracy | {figures['accuracy']:.3f} | 0.750 |" in card and "one per perspective" in card


def test_probabilities_are_served_at_the_temperature_that_fits_dev(exported: Export) -> None:
    folder = exported(calibrate="temperature")
    pairs = {row["pair_id"]: row for row in read_table(folder.run_dir / "1-pairs/pairs.parquet").to_pylist()}
    rows = read_table(folder.run_dir / "9-student/lrkd/predictions.parquet").to_pylist()
    dev = [row for row in rows if row["split"] == "dev"]
    scheme = read_student_config(folder.path).scheme
    gold = [scheme.index(pairs[row["pair_id"]]["label"]) for row in dev]
    found = Scorer.load(folder.path, ServeSettings()).score([pairs[row["pair_id"]] for row in dev]).probabilities
    trained = np.array([row["probabilities"] for row in dev])
    temperature = read_student_config(folder.path).temperature
    manifest = read_manifest(folder.path)
    assert manifest is not None and manifest["figures"]["temperature"] == temperature != 1.0

    def nll(probabilities: np.ndarray) -> float:
        return float(-np.log(probabilities[np.arange(len(gold)), gold]).mean())

    assert nll(found) < nll(trained)
    assert nll(found) <= min(nll(scaled(trained, temperature * factor)) for factor in (0.9, 1.1)) + 1e-6
    assert (found.argmax(1) == trained.argmax(1)).all()
    assert f"temperature {temperature:.2f}" in (folder.path / "README.md").read_text()


def test_the_card_ranks_as_the_service_does(exported: Export) -> None:
    folder = exported()
    pairs = {row["pair_id"]: row for row in read_table(folder.run_dir / "1-pairs/pairs.parquet").to_pylist()}
    rows = read_table(folder.run_dir / "9-student/lrkd/predictions.parquet").to_pylist()
    test = [pairs[row["pair_id"]] for row in rows if row["split"] == "test"]
    served = Scorer.load(folder.path, ServeSettings()).score(test).probabilities
    scheme = read_student_config(folder.path).scheme
    own = evaluate([row["label"] for row in test], served, [row["query_id"] for row in test], scheme)
    manifest = read_manifest(folder.path)
    assert manifest is not None
    for name in ("accuracy", "macro_f1", "auc", "ndcg_at_10"):
        assert manifest["figures"]["test"][name] == pytest.approx(own[name], abs=1e-4), name


def test_the_reference_counts_dev_as_it_is_served(exported: Export) -> None:
    folder = exported()
    pairs = {row["pair_id"]: row for row in read_table(folder.run_dir / "1-pairs/pairs.parquet").to_pylist()}
    dev = [pair for pair in pairs.values() if pair["split"] == "dev"]
    scorer = Scorer.load(folder.path, ServeSettings(precision="fp32"))
    scores, found = scorer.score(dev), read_reference(folder.path)
    assert found is not None and found.pairs == len(dev) == 16
    values = {"score": scorer.relevance(scores.probabilities), "length": scores.tokens}
    values["label"] = scores.probabilities.argmax(1)
    for name, each in values.items():
        expected = found.histograms[name]
        assert histogram(expected.edges, each).tolist() == list(expected.counts), name
    manifest = read_manifest(folder.path)
    assert manifest is not None and REFERENCE in manifest["files"]


def test_calibration_can_be_left_out(exported: Export) -> None:
    folder = exported(calibrate="none")
    manifest = read_manifest(folder.path)
    assert manifest is not None and manifest["figures"]["temperature"] == 1.0
    assert read_student_config(folder.path).temperature == 1.0


def test_a_bias_per_label_is_served_as_it_fits_dev(exported: Export) -> None:
    folder = exported(calibrate="temperature+bias")
    config = read_student_config(folder.path)
    bias = dict(zip(config.scheme.codes, config.label_bias, strict=True))
    manifest = read_manifest(folder.path)
    assert manifest is not None and manifest["figures"]["label_bias"] == bias and abs(bias["1"]) > 0.01
    pairs = {row["pair_id"]: row for row in read_table(folder.run_dir / "1-pairs/pairs.parquet").to_pylist()}
    rows = read_table(folder.run_dir / "9-student/lrkd/predictions.parquet").to_pylist()
    for split in ("dev", "test"):
        own = [row for row in rows if row["split"] == split]
        scorer = Scorer.load(folder.path, ServeSettings(precision="fp32"))
        served = scorer.score([pairs[row["pair_id"]] for row in own]).probabilities
        odds = np.log([row["probabilities"] for row in own]) / config.temperature + np.array(config.label_bias)
        np.testing.assert_allclose(served, np.exp(odds) / np.exp(odds).sum(1, keepdims=True), atol=1e-4)
        gold = [pairs[row["pair_id"]]["label"] for row in own]
        if split == "dev":  # where bias and temperature are free, the mean probability of a label is its share
            shares = [gold.count(code) / len(gold) for code in config.scheme.codes]
            assert served.mean(0) == pytest.approx(shares, abs=1e-3)
        else:
            figures = evaluate(gold, served, [pairs[row["pair_id"]]["query_id"] for row in own], config.scheme)
            assert manifest["figures"]["test"]["accuracy"] == figures["accuracy"]
    assert f"`1` {bias['1']:+.2f}" in (folder.path / "README.md").read_text()


def test_by_default_a_bias_is_served_where_it_serves_other_queries(exported: Export) -> None:
    folder = exported()
    codes = read_student_config(folder.path).scheme.codes

    def biased(gold: Callable[[int, int], int]) -> bool:
        """Fit a student that calls both labels equally probable, on 100 queries of four pairs."""
        dev = [
            {"label": codes[gold(query, place)], "query_id": f"{query:03}", "probabilities": [0.5, 0.5]}
            for query in range(100)
            for place in range(4)
        ]
        export.calibrate(folder.path, dev, "best")
        return bool(read_student_config(folder.path).label_bias)

    assert biased(lambda query, place: int(place > 0)), "three of four pairs of every query have the second label"
    assert not biased(lambda query, place: query % 5 % 2), "each held-out group of queries has one label alone"


def test_a_damaged_copy_is_refused(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = export.copy_student

    def damage(source: Path, target: Path) -> None:
        copy(source, target)
        tensors = load_file(target / "model.safetensors")
        tensors["classifier.bias"] = tensors["classifier.bias"] + np.float32(0.01)
        save_file(tensors, target / "model.safetensors")

    monkeypatch.setattr(export, "copy_student", damage)
    with pytest.raises(UserError, match=r"logits differ from the trained one's by 1.00e-02"):
        exported()


def test_weights_that_were_saved_otherwise_than_trained_are_refused(exported: Export, stage: Stage) -> None:
    """The copy is faithful, so only what the training left beside it can tell."""
    weights = stage("10-export").run_dir / "9-student/lrkd/model/model.safetensors"
    tensors = load_file(weights)
    tensors["classifier.bias"] = tensors["classifier.bias"] + np.float32(0.01)
    save_file(tensors, weights)
    with pytest.raises(UserError, match=r"logits differ from the trained one's by 1.00e-02"):
        exported()
    (weights.parents[1] / "trained_logits.parquet").unlink()
    with pytest.raises(UserError, match=r"has no trained_logits.parquet: delete the folder and run `student` again"):
        exported()


def test_the_student_without_a_teacher_has_no_index(exported: Export) -> None:
    folder = exported(student="ce_only")
    assert RationaleIndex.load(folder.path, NAMES) is None
    assert not (folder.path / "index.parquet").exists()


def test_index_size_is_bounded(exported: Export) -> None:
    folder = exported(index_pairs=5)
    manifest = read_manifest(folder.path)
    assert manifest is not None and manifest["counts"] == {"indexed": 5, "reference_pairs": 16}
    assert load_file(folder.path / "index.safetensors")["latents"].shape == (2, 5, 6)


def test_a_training_pair_is_its_own_nearest(exported: Export) -> None:
    folder = exported()
    index = RationaleIndex.load(folder.path, NAMES)
    assert index is not None and index.rows.num_rows == 31  # of 32 training pairs one was not judged
    pair = {"query": "red drill", "title": "the lamp"}
    latents = predict(Student.load(folder.path), load_tokenizer(folder.path), [pair]).latents
    assert latents is not None
    (nearest,) = index.nearest(latents[:1], count=3)
    assert list(nearest) == ["intent", "rules"]
    for found in nearest.values():
        assert (found[0].query, found[0].title) == ("red drill", "the lamp")
        assert found[0].similarity == pytest.approx(1, abs=2e-3)
        assert found[0].similarity >= found[1].similarity >= found[2].similarity
    assert nearest["intent"][0].rationale == "the shopper wants red drill"


def test_a_perspective_that_was_silent_is_never_shown(exported: Export) -> None:
    folder = exported()
    index = RationaleIndex.load(folder.path, NAMES)
    assert index is not None
    every = index.vectors.transpose(1, 0, 2)
    (found,) = index.nearest(every[:1], count=100)
    assert len(found["intent"]) == 31 and len(found["rules"]) == 31 - 8
    assert all(neighbour.rationale for neighbour in found["rules"])
    # More questions than are looked up at a time: each gets its own answer, the first of those that it would get alone.
    many = index.nearest(np.tile(every, (5, 1, 1)))
    assert len(many) == 5 * 31 > 2 * AT_A_TIME
    alone = [index.nearest(every[n : n + 1], count=100)[0] for n in range(31)]
    first = [{name: near[0].pair_id for name, near in one.items()} for one in alone]
    assert [{name: near[0].pair_id for name, near in one.items()} for one in many] == 5 * first


def test_a_rationale_for_the_students_own_verdict_is_shown(exported: Export) -> None:
    """The nearest is the pair itself. Asked for the other verdict, another pair is shown that has it."""
    folder = exported()
    index = RationaleIndex.load(folder.path, NAMES)
    assert index is not None
    latents, given = index.vectors.transpose(1, 0, 2), index.rows["verdicts"].to_pylist()
    yes, no = index.nearest(latents, [["1"] * 2] * 31), index.nearest(latents, [["0"] * 2] * 31)
    for n in range(31):
        own = index.rows["pair_id"][n].as_py()
        assert {yes[n]["intent"][0].verdict, no[n]["intent"][0].verdict} == {"1", "0"}
        assert (yes if given[n][0] == "1" else no)[n]["intent"][0].similarity == pytest.approx(1, abs=2e-3), own
        # From `rules` nobody ever said yes, so any verdict will do.
        assert yes[n]["rules"] == no[n]["rules"] and yes[n]["rules"][0].verdict == "0"


def test_a_run_without_a_test_split_is_exported_without_figures(exported: Export) -> None:
    folder = exported()
    trained = folder.run_dir / "9-student/lrkd/predictions.parquet"
    predicted = read_table(trained)
    write_table(trained, predicted.filter(pc.not_equal(predicted["split"], "test")))
    manifest = read_manifest(exported().path)
    assert manifest is not None and manifest["figures"]["test"]["pairs"] == 0
    assert "| accuracy | - | - |" in (folder.path / "README.md").read_text(encoding="utf-8").lower()


def test_a_student_that_was_not_trained(exported: Export, stage: Stage) -> None:
    folder = stage("10-export")
    (folder.run_dir / "9-student/ce_only/model/student.json").unlink()
    with pytest.raises(UserError, match=r"export.student: 'ce_only' was not trained"):
        exported(student="ce_only")
