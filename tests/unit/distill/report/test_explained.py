"""The report's figures on explanations are those of the index that is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.base.stage_folder import write_json
from cluster.base.tables import read_table, rows_of
from distill.report.explained import conclusion, explained
from distill.report.stage import figures
from distill.student.model import CONFIG, Student, load_tokenizer, read_student_config
from distill.student.predict import predict
from distill.student.rationale_index import ROWS, RationaleIndex, write_index
from tests.helpers.report_run import CODES, NAMES, report_stage, write_run


def test_the_figures_are_those_of_what_is_served(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", tiny=tmp_path / "bert")
    pairs, judgements = (
        tmp_path / "run" / name for name in ("1-pairs/pairs.parquet", "7-judgements/judgements.parquet")
    )
    test = [row for row in rows_of(pairs) if row["split"] == "test"]
    judged = {row["pair_id"]: row for row in rows_of(judgements)}
    stage, export = report_stage(encoder=tmp_path / "bert"), folder.input("10-export")
    assert explained(stage, folder, test, judged) is None, "without an index there are no explanations"
    assert write_index(export, pairs, judgements, 1000) == 40
    found = explained(stage, folder, test, judged)
    assert found is not None and found["pairs"] == 24
    answers = predict(Student.load(export), load_tokenizer(export), test)
    index = RationaleIndex.load(export, NAMES)
    assert index is not None and answers.latents is not None and answers.perspective_logits is not None
    own = [[CODES[i] for i in row] for row in answers.perspective_logits.argmax(-1)]
    hits = [
        near[name][0].verdict == judged[row["pair_id"]]["verdicts"][p]
        for row, near in zip(test, index.nearest(answers.latents, own), strict=True)
        for p, name in enumerate(NAMES)
        if judged[row["pair_id"]]["verdicts"][p]
    ]
    assert found["explanation_agreement"] == pytest.approx(sum(hits) / len(hits))
    # Every rationale says "red phone case" and names nothing that the other pair lacks.
    assert found["shown"]["latent_and_verdict"]["true"] == found["shown"]["title"]["true"] == 1.0
    assert explained(stage, folder, [], judged) is None
    # The student's label is the one that is served: with such a bias it is always the last.
    served = read_student_config(export).model_copy(update={"label_bias": (0.0, 0.0, 0.0, 99.0)})
    write_json(export / CONFIG, served.model_dump(mode="json"))
    biased = explained(stage, folder, test, judged)
    said = [verdict for row in test for verdict in judged[row["pair_id"]]["verdicts"] if verdict]
    assert biased is not None and biased["verdicts"]["label"] == pytest.approx(said.count(CODES[3]) / len(said))
    report = {"headline": {"judges": {}, "ceiling": None}, "explanations": found}
    assert figures(report)["explanation_gain_points"] == found["explanation_gain_points"]


def test_of_many_pairs_the_index_draws_some_from_the_whole_file(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", tiny=tmp_path / "bert")
    files = [tmp_path / "run" / name for name in ("1-pairs/pairs.parquet", "7-judgements/judgements.parquet")]
    export = folder.input("10-export")
    train = [row["pair_id"] for row in rows_of(files[0]) if row["split"] == "train"]
    drawn = []
    for limit in (10, 10, 20):
        assert write_index(export, *files, limit) == limit
        drawn.append(read_table(export / ROWS)["pair_id"].to_pylist())
    assert drawn[0] == drawn[1] != train[:10] and set(drawn[0]) < set(drawn[2])
    assert drawn[2] == sorted(drawn[2], key=train.index), "in the order of the file"


@pytest.mark.parametrize(
    ("low", "high", "said"), [(1, 3, "is better than"), (-3, -1, "is worse than"), (-1, 1, "is not told apart from")]
)
def test_the_sentence_says_no_more_than_the_interval(low: float, high: float, said: str) -> None:
    ends = {"explanation_gain_points_low": low, "explanation_gain_points_high": high}
    sentence = conclusion({"explanation_agreement": 0.5, "explanation_gain_points": 0.0} | ends)
    assert said in sentence and "50.0 %" in sentence
