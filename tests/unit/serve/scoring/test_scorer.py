"""The scorer: the same scores in any order and batch, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cluster.base.errors import UserError
from distill.student.model import Student, load_tokenizer
from distill.student.predict import predict
from mpcot.temperature import scaled
from serve.config import BatchSettings, ServeSettings
from serve.http.schemas import ProductInput, ScoreInput
from serve.scoring.scorer import Scorer, check_export, export_name
from tests.helpers.local_service import explaining_export, varied_pairs
from tests.helpers.report_run import NAMES, write_export

WORDS = ["red", "blue", "drill", "lamp", "mug", "case", "phone", "shoe"]
PAIRS = [{"query": WORDS[i % 8], "title": " ".join(WORDS[: 1 + (5 * i + i // 8) % 8])} for i in range(21)]


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return write_export(tmp_path_factory.mktemp("export"), tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def scorer(export):
    return Scorer.load(export, ServeSettings(precision="fp32", batch=BatchSettings(max_batch_tokens=64)))


def test_scores_are_those_of_the_student(export, scorer):
    expected = predict(Student.load(export), load_tokenizer(export), PAIRS)
    found = scorer.score(PAIRS)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(found.latents, expected.latents, atol=1e-5)
    assert found.verdicts is not None and found.verdicts.shape == (21, 3, 4)
    assert len({row.tobytes() for row in found.probabilities.round(6)}) > 10, "the pairs do differ"


def test_probabilities_are_at_the_exports_temperature(export, scorer):
    student = Student.load(export)
    student.config = student.config.model_copy(update={"temperature": 2.5})
    warm = Scorer(student, load_tokenizer(export), "x").score(PAIRS)
    np.testing.assert_allclose(warm.probabilities, scaled(scorer.score(PAIRS).probabilities, 2.5), atol=1e-5)


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_the_token_budget_changes_no_score(export, scorer, budget):
    other = Scorer(Student.load(export), load_tokenizer(export), "x", max_batch_tokens=budget)
    np.testing.assert_allclose(other.score(PAIRS).probabilities, scorer.score(PAIRS).probabilities, atol=1e-5)


def test_batches_stay_within_the_budget_and_hold_every_pair_once(export, monkeypatch):
    scorer = Scorer(Student.load(export), load_tokenizer(export), "x", max_batch_tokens=40)
    shapes = []
    forward = scorer._forward
    sizes = scorer.tokens.length
    monkeypatch.setattr(scorer, "_forward", lambda p: shapes.append((len(p), max(map(sizes, p)))) or forward(p))
    scorer.score(PAIRS)
    assert sum(count for count, _ in shapes) == len(PAIRS)
    assert all(count * length <= 40 or count == 1 for count, length in shapes)
    assert [length for _, length in shapes] == sorted((length for _, length in shapes), reverse=True)
    assert len({length for _, length in shapes}) > 1, "short pairs are not padded to the longest"


def test_bf16_is_close(export, scorer):
    low = Scorer(Student.load(export), load_tokenizer(export), "x", precision="bf16")
    np.testing.assert_allclose(low.score(PAIRS).probabilities, scorer.score(PAIRS).probabilities, atol=0.02)


def ask(query, *titles, explain=False):
    products = [ProductInput(id=str(i), title=title) for i, title in enumerate(titles)]
    return ScoreInput(query=query, products=products, explain=explain)


def test_requests_scored_together_get_what_they_get_alone(scorer):
    requests = [ask("red phone", "lamp", "red phone case"), ask("mug", "blue mug")]
    together = scorer.answer(requests)
    assert [[result.id for result in results] for results in together] == [["0", "1"], ["0"]]
    for request, results in zip(requests, together, strict=True):
        for alone, result in zip(scorer.answer([request])[0], results, strict=True):
            assert result.label == alone.label
            assert result.score == pytest.approx(alone.score, abs=1e-5)


def test_a_result_is_consistent(scorer):
    result = scorer.answer([ask("red phone", "lamp")])[0][0]
    assert result.label == max(result.probabilities, key=result.probabilities.get)
    assert sum(result.probabilities.values()) == pytest.approx(1, abs=1e-5)
    gains = {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0}
    assert result.score == pytest.approx(sum(gains[c] * p for c, p in result.probabilities.items()), abs=1e-5)
    assert tuple(result.perspectives) == NAMES
    for verdict in result.perspectives.values():
        assert verdict.verdict == max(verdict.probabilities, key=verdict.probabilities.get)
    assert result.explanations is None


def test_without_verdict_heads_there_are_no_verdicts(tmp_path):
    export = write_export(tmp_path / "export", tmp_path / "bert", per_perspective=False)
    scorer = Scorer.load(export, ServeSettings())
    assert scorer.answer([ask("red", "lamp")])[0][0].perspectives == {}


@pytest.fixture(scope="module")
def explaining(tmp_path_factory):
    return Scorer.load(explaining_export(tmp_path_factory.mktemp("explaining"), 8), ServeSettings())


def test_explanations_come_from_the_index_and_argue_for_the_students_verdict(explaining):
    index = explaining.explainer.index
    drawn = set(index.rows["pair_id"].to_pylist())
    # Of every eighth pair, from the sixth on, one perspective said nothing.
    known = next(pair for n, pair in enumerate(varied_pairs()) if n % 8 != 5 and pair["pair_id"] in drawn)
    result = explaining.answer([ask(known["query"], known["title"], explain=True)])[0][0]
    assert result.explanations is not None and [e.perspective for e in result.explanations] == list(NAMES)
    itself, given = index.rows["pair_id"].to_pylist().index(known["pair_id"]), index.rows["verdicts"].to_pylist()
    for place, shown in enumerate(result.explanations):
        own = result.perspectives[shown.perspective].verdict
        if own in {row[place] for row in given}:
            assert shown.verdict == own
        if own == given[itself][place]:
            assert shown.pair_id == known["pair_id"], "a training pair is its own nearest"
            assert shown.similarity == pytest.approx(1, abs=2e-3)
    scores = explaining.score([known])
    (any_verdict,) = index.nearest(scores.latents)
    assert {near[0].pair_id for near in any_verdict.values()} == {known["pair_id"]}


def test_examples_share_words_with_the_query(explaining):
    rows = explaining.explainer.index.rows
    title = rows["title"].to_pylist()[-1]
    found = explaining.explainer.examples(f"a {title} please", 3)
    assert found.queries == list(dict.fromkeys(rows["query"].to_pylist()))[:3]
    assert len(found.titles) == 3 and found.titles[0] == title


def test_the_model_says_what_it_can_do(scorer, explaining):
    about = explaining.about
    assert [label.code for label in about.labels] == ["E", "S", "C", "I"]
    assert (about.perspectives, about.verdicts, about.explanations) == (list(NAMES), True, True)
    assert scorer.about.explanations is False


def test_wrong_folders(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        check_export(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no student\.json"):
        Scorer.load(tmp_path, ServeSettings())


def test_a_gpu_is_not_tried_where_there_is_none(export, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"serve\.gpus_per_replica"):
        Scorer.load(export, ServeSettings(gpus_per_replica=1))


def test_the_name_tells_two_exports_apart(export):
    assert export_name(export) == f"{export.name}@01234567"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_fast_form_that_answers_otherwise_is_not_served(export, monkeypatch, precision):
    Scorer.load(export, ServeSettings(precision=precision))
    # The fast form has a way of its own through the encoder.
    monkeypatch.setattr(
        Student, "encode", lambda self, ids, *_: 100 * torch.randn(*ids.shape, self.encoder.config.hidden_size)
    )
    with pytest.raises(UserError, match=f"fast form in {precision} differ by"):
        Scorer.load(export, ServeSettings(precision=precision))
