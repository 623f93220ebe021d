"""A plain classifier: exact where the student reads [CLS] alone, distilled elsewhere, and loaded by other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cluster.base.errors import UserError
from cluster.base.stage_folder import read_json
from distill.config import PolyExtractor
from distill.formats.classifier import Teaching
from distill.formats.classifier_folder import write_classifier
from distill.formats.onnx_graph import answers
from distill.formats.pairs import FIXED, RunPairs
from distill.student.model import Student, load_tokenizer
from tests.helpers.command import broadfast, text
from tests.helpers.format_run import format_run, pair_rows, with_latents

PAIRS: list[dict[str, Any]] = [{"query": row["query"], "title": row["title"]} for row in pair_rows()[-40:]]


def wanted(export: Path) -> dict[str, np.ndarray]:
    return answers(Student.load(export), load_tokenizer(export), PAIRS)


def by_transformers(folder: Path) -> torch.Tensor:
    """The logits, as the documentation of transformers asks for them."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    queries, titles = [pair["query"] for pair in PAIRS], [pair["title"] for pair in PAIRS]
    batch = tokenizer(queries, titles, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        return model.eval()(**batch).logits


def test_a_plain_student_is_folded_exactly(tmp_path: Path) -> None:
    export = format_run(tmp_path / "run")
    figures = write_classifier(export, tmp_path / "out", "labels", RunPairs(export.parent), Teaching(), "apache-2.0")
    assert figures["exact"] and figures["largest_score_difference"] < 2e-5 and figures["labels_kept"] == 1
    found = by_transformers(tmp_path / "out").softmax(-1).numpy()
    np.testing.assert_allclose(found, wanted(export)["probabilities"], atol=2e-5)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.id2label == dict(
        enumerate("ESCI")
    )
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card and "folded into this form without a loss" in card
    assert "macro-F1 of this model" in card and "`E` Exact" in card


def test_sentence_transformers_loads_it(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    export = format_run(tmp_path / "run", scheme="binary")
    figures = write_classifier(export, tmp_path / "out", "score", RunPairs(export.parent), Teaching())
    assert figures["exact"], "the score of two labels is one logit"
    model = sentence_transformers.CrossEncoder(str(tmp_path / "out"), device="cpu")
    found = model.predict([(pair["query"], pair["title"]) for pair in PAIRS], show_progress_bar=False)
    np.testing.assert_allclose(found, wanted(export)["score"], atol=2e-5)
    ranked = model.rank(PAIRS[0]["query"], [pair["title"] for pair in PAIRS[:8]])
    assert [one["score"] for one in ranked] == sorted((one["score"] for one in ranked), reverse=True)


def test_a_folder_of_labels_in_sentence_transformers(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    export = format_run(tmp_path / "run")
    write_classifier(export, tmp_path / "out", "labels", None, Teaching())
    model = sentence_transformers.CrossEncoder(str(tmp_path / "out"), device="cpu")
    texts = [(pair["query"], pair["title"]) for pair in PAIRS]
    found = model.predict(texts, apply_softmax=True, show_progress_bar=False)
    np.testing.assert_allclose(found, wanted(export)["probabilities"], atol=2e-5)


@pytest.mark.parametrize(("extractor", "pooling"), [(with_latents(), "cls"), (None, "mean")], ids=["lrkd", "mean"])
def test_other_students_are_distilled_and_the_loss_is_stated(
    tmp_path: Path, extractor: PolyExtractor | None, pooling: str
) -> None:
    export = format_run(tmp_path / "run", extractor, pooling=pooling)
    teaching = Teaching(epochs=20, learning_rate=3e-3)
    figures = write_classifier(export, tmp_path / "out", "score", RunPairs(export.parent), teaching)
    assert not figures["exact"] and figures["distilled_on"] == 96
    untaught = write_classifier(
        export, tmp_path / "less", "score", RunPairs(export.parent), Teaching(epochs=1, learning_rate=1e-9)
    )
    assert figures["mean_score_difference"] < 0.7 * untaught["mean_score_difference"], "it learnt the student's scores"
    assert figures == read_json(tmp_path / "out/parity.json")
    assert {"ndcg_at_10"} <= set(figures["student"]) and figures["model"]["ndcg_at_10"] is not None
    found = by_transformers(tmp_path / "out").sigmoid()[:, 0].numpy()
    assert np.abs(found - wanted(export)["score"]).mean() == pytest.approx(figures["mean_score_difference"], abs=1e-5)
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "distilled in 20 passes" in card and "license: other" in card and "look it up before" in card


def test_what_eland_does_with_it(tmp_path: Path) -> None:
    """It traces the model for Elasticsearch with inputs of a fixed length, in the order of BERT's arguments."""
    export = format_run(tmp_path / "run")
    write_classifier(export, tmp_path / "out", "labels", None, Teaching())
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    batch = AutoTokenizer.from_pretrained(tmp_path / "out")("red", "case", padding="max_length", return_tensors="pt")
    inputs = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
    traced = torch.jit.trace(model, inputs, strict=False)
    torch.testing.assert_close(traced(*inputs)["logits"], model(*inputs).logits)


def test_without_pairs_only_an_exact_student_can_be_written(tmp_path: Path) -> None:
    plain = write_classifier(format_run(tmp_path / "run"), tmp_path / "out", "labels", None, Teaching())
    assert plain["pairs"] == len(FIXED) and "student" not in plain
    with pytest.raises(UserError, match="Name the run folder that has them with --run"):
        write_classifier(format_run(tmp_path / "other", with_latents()), tmp_path / "out2", "labels", None, Teaching())


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    export = format_run(tmp_path / "run")
    done = broadfast("export", export, "--to", "sequence-classification", "--licence", "mit")
    assert done.exit_code == 0 and "folded exactly, scores" in text(done)
    assert "license: mit" in (export / "sequence-classification/README.md").read_text(encoding="utf-8")
