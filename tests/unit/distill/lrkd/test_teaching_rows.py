from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cluster.base.errors import UserError
from cluster.base.tables import read_table, write_table
from distill.config import TargetSettings
from distill.lrkd.teaching_rows import RowSettings, StudentRows, combine_targets, voters, with_calibrated_labels
from distill.lrkd.unlabelled import surplus, vote_weight
from distill.targets.linear_map import MAP, fit_maps, save_maps, training_pairs
from mpcot.records import JUDGEMENT, TARGET
from mpcot.schemes.scheme import load_scheme
from tests.helpers.tiny_shop import make_run

BINARY = load_scheme("binary")
YES, NO = BINARY.codes
RESIDUAL = TargetSettings(transform="residual", dimensions=3)
FIRST, SECOND = np.array([1.0, 0.0], np.float32), np.array([0.0, 3.0], np.float32)


def settings(run_dir: Path = Path(), **changes: Any) -> RowSettings:
    given: dict[str, Any] = {
        "pairs": run_dir / "1-pairs/pairs.parquet",
        "judgements": run_dir / "7-judgements/judgements.parquet",
        "targets": run_dir / "8-targets/targets.parquet",
        "scheme": BINARY,
        "perspectives": ("intent", "rules"),
        "per_perspective": True,
        "target": "vote",
        "width": 6,
    }
    return RowSettings(**(given | changes))


@pytest.mark.parametrize(
    ("target", "expected"),
    [("vote", [[0, 3]]), ("mean", [[0.5, 1.5]]), ("concat", [[1, 0, 0, 3]]), ("intent", [[1, 0]])],
)
def test_one_target_of_two(target: str, expected: list[list[float]]) -> None:
    given = settings(width=2, per_perspective=False, target=target)
    combined, mask = combine_targets([FIRST, SECOND], [1], given)
    assert combined.tolist() == expected and mask.tolist() == [True]


@pytest.mark.parametrize(
    ("target", "expected", "present"),
    [("vote", [0, 0], False), ("mean", [1, 0], True), ("concat", [0] * 4, False), ("rules", [0, 0], False)],
)
def test_one_target_when_the_voting_one_is_missing(target: str, expected: list[float], present: bool) -> None:
    given = settings(width=2, per_perspective=False, target=target)
    combined, mask = combine_targets([FIRST, None], [1], given)
    assert combined[0].tolist() == expected and mask.tolist() == [present]


def test_the_surest_perspective_speaks_for_the_vote() -> None:
    said: dict[str, Any] = {"vote": YES, "verdicts": [YES, NO, YES, None, YES]}
    shares = [[0.6, 0.4], [0.0, 1.0], [0.9, 0.1], None, [0.7, 0.3]]
    order = voters("p", said | {"perspective_soft": shares}, BINARY)
    assert order == [2, 4, 0]
    given = settings(width=2, per_perspective=False, perspectives=tuple("abcde"))
    combined, mask = combine_targets([FIRST, FIRST, None, None, SECOND], order, given)
    assert combined.tolist() == [[0, 3]] and mask.tolist() == [True], "the surest one that has a vector"


def test_equally_sure_perspectives_take_turns_by_pair() -> None:
    said: dict[str, Any] = {"vote": YES, "verdicts": [YES] * 3, "perspective_soft": [[0.9, 0.1]] * 3}
    first = [voters(f"p{n}", said, BINARY)[0] for n in range(600)]
    assert [voters(f"p{n}", said, BINARY)[0] for n in range(600)] == first
    assert all(150 < first.count(place) < 250 for place in range(3))


def test_a_target_per_perspective() -> None:
    combined, mask = combine_targets([None, SECOND], [1], settings(width=2))
    assert combined.tolist() == [[0, 0], [0, 3]] and mask.tolist() == [False, True]


def test_rows_join_pairs_with_what_the_teacher_said(run_dir: Path) -> None:
    rows = StudentRows(settings(run_dir), ("train",))
    assert len(rows) == 32 and len(rows.labels()) == 32
    silent = next(row for row in rows if row["pair_id"] == "0-mug-mug")
    assert silent["label"] == BINARY.index(YES) and silent["weight"] == 1 and silent["judged"]
    assert silent["verdicts"] == [BINARY.index(YES), -1] and silent["target_mask"].tolist() == [True, False]
    assert silent["targets"][0].tolist() == np.eye(6)[BINARY.index(YES)].tolist()


def test_rows_of_a_run_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    path, before = run_dir / "1-pairs/pairs.parquet", StudentRows(settings(run_dir), ("train",))[0]
    write_table(path, read_table(path).drop_columns(["bullets", "attributes"]))
    row = StudentRows(settings(run_dir), ("train",))[0]
    assert (row["title"], row["bullets"]) == (before["title"], None)


def test_a_pair_that_nobody_judged_still_teaches_its_label(run_dir: Path) -> None:
    row = StudentRows(settings(run_dir), ("train",))[0]
    assert row["label"] == BINARY.index(YES) and not row["judged"]
    assert row["verdicts"] == [-1, -1] and not row["target_mask"].any()


def test_unlabelled_pairs_learn_the_vote_weighted_by_how_sure_it_is_on_dev(run_dir: Path) -> None:
    """Every vote has a probability of 3/4. On dev all are right, so that the temperature is the lowest, 0.2."""
    rows = StudentRows(settings(run_dir), ("unlabelled",))
    assert len(rows) == 16
    assert [row["weight"] for row in rows] == pytest.approx([3**5 / (3**5 + 1)] * 16, abs=1e-3)
    assert rows.labels() == [row["label"] for row in rows] and rows.labels().count(BINARY.index(YES)) == 4


def test_shuffled_rows_get_another_pairs_reasoning_and_keep_their_label(run_dir: Path) -> None:
    own = StudentRows(settings(run_dir), ("train",))
    shuffled, again, other = (controlled(run_dir, "shuffled", seed=seed) for seed in (1, 1, 2))
    assert shuffled.sources == again.sources != other.sources
    assert sorted(shuffled.sources) == sorted(own.sources)
    assert all(a != b for a, b in zip(shuffled.sources, own.sources, strict=True))
    at = {row["pair_id"]: row for row in own}
    for row, source in zip(shuffled, shuffled.sources, strict=True):
        mine, given = at[row["pair_id"]], at[source]
        assert [row[k] for k in ("query", "label", "judged", "soft")] == [
            mine[k] for k in ("query", "label", "judged", "soft")
        ]
        assert row["verdicts"] == given["verdicts"] and row["targets"].tolist() == given["targets"].tolist()
        assert row["target_mask"].tolist() == given["target_mask"].tolist()


def controlled(run_dir: Path, control: str, split: str = "train", **changes: Any) -> StudentRows:
    return StudentRows(settings(run_dir, control=control, **changes), (split,))


def embedded(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Give every pair vectors of its own, in all columns; return them by pair."""
    path = run_dir / "8-targets/targets.parquet"
    draw = np.random.default_rng(3)
    rows = read_table(path).to_pylist()
    for row in rows:
        for name in ("vectors", "permuted", "template"):
            row[name] = [None if v is None else draw.normal(size=6).astype(np.float32).tolist() for v in row["vectors"]]
        row |= {name: draw.normal(size=6).astype(np.float32).tolist() for name in ("query", "title")}
    write_table(path, pa.Table.from_pylist(rows, TARGET))
    return {row["pair_id"]: row for row in rows}


def filled(vectors: list[Any]) -> list[Any]:
    return [[0.0] * 6 if v is None else list(v) for v in vectors]


@pytest.mark.parametrize("control", ["same_verdicts", "nearest_title"])
@pytest.mark.parametrize("split", ["train", "dev", "test", "unlabelled"])
def test_a_matched_donor_is_another_training_pair_with_the_same_label_and_verdicts(
    run_dir: Path, control: str, split: str
) -> None:
    said = embedded(run_dir)
    pairs = {row["pair_id"]: row for row in read_table(run_dir / "1-pairs/pairs.parquet").to_pylist()}
    judged = {row["pair_id"]: row for row in read_table(run_dir / "7-judgements/judgements.parquet").to_pylist()}
    rows, own = controlled(run_dir, control, split), StudentRows(settings(run_dir), (split,))
    donors = 0
    for row, mine, source in zip(rows, own, rows.sources, strict=True):
        assert {k: v for k, v in row.items() if not k.startswith("target")} == {
            k: v for k, v in mine.items() if not k.startswith("target")
        }
        if source is None:
            assert not row["target_mask"].any()
            continue
        donors += 1
        assert source != row["pair_id"] and pairs[source]["split"] in ("train", "unlabelled")
        assert pairs[source]["label"] == pairs[row["pair_id"]]["label"]
        assert judged[source]["verdicts"] == judged[row["pair_id"]]["verdicts"]
        assert row["targets"].tolist() == filled(said[source]["vectors"])
    assert donors == len(rows) - rows.without_donor - (split == "train")  # one train pair was not judged
    if control == "nearest_title" and split == "train":
        check_nearest(rows, said)


def test_the_pair_itself_says_which_perspective_speaks_for_the_vote(run_dir: Path) -> None:
    """Equally sure perspectives take turns by the pair's id, and not by that of the donor of its vectors."""
    path = run_dir / "7-judgements/judgements.parquet"
    judged = read_table(path).to_pylist()
    for row in judged:
        row |= {"vote": NO, "verdicts": [NO, NO], "perspective_soft": [[0.1, 0.9]] * 2}
    write_table(path, pa.Table.from_pylist(judged, JUDGEMENT))
    path = run_dir / "8-targets/targets.parquet"
    targets = [{"pair_id": row["pair_id"], "vectors": np.eye(6)[:2].tolist()} for row in judged]
    write_table(path, pa.Table.from_pylist(targets, TARGET))
    rows = controlled(run_dir, "same_verdicts", per_perspective=False)
    taught = [row for row in rows if row["target_mask"].any()]
    assert len(taught) > 20
    for row in taught:
        first = voters(row["pair_id"], judged[0], BINARY)[0]
        assert row["targets"][0].argmax() == first
    mixed = controlled(run_dir, "shuffled", per_perspective=False)
    for row, source in zip(mixed, mixed.sources, strict=True):
        if source is not None and row["target_mask"].any():
            assert row["targets"][0].argmax() == voters(source, judged[0], BINARY)[0]


def check_nearest(rows: StudentRows, said: dict[str, dict[str, Any]]) -> None:
    pool = dict(rows._matched(rows._teachable()))
    unit = {i: np.array(row["title"]) / np.linalg.norm(row["title"]) for i, row in said.items()}
    for row, source in zip(rows, rows.sources, strict=True):
        pair_id = row["pair_id"]
        others = [i for i, group in pool.items() if i != pair_id and pair_id in pool and group == pool[pair_id]]
        if source is not None:
            assert source == max(others, key=lambda i: float(unit[i] @ unit[pair_id]))


def test_half_of_the_rows_keep_their_own_vectors(run_dir: Path) -> None:
    embedded(run_dir)
    rows = controlled(run_dir, "half", seed=4)
    own = [row["pair_id"] == source for row, source in zip(rows, rows.sources, strict=True)]
    assert len(own) == 32 and sum(own) == 16
    assert rows.sources == controlled(run_dir, "half", seed=4).sources != controlled(run_dir, "half", seed=5).sources


@pytest.mark.parametrize("control", ["permuted", "template"])
def test_a_control_may_have_vectors_of_its_own(run_dir: Path, control: str) -> None:
    said = embedded(run_dir)
    rows = controlled(run_dir, control)
    for row in rows[1:]:
        assert row["targets"].tolist() == filled(said[row["pair_id"]][control])
    assert rows.sources == [row["pair_id"] for row in rows]


def test_query_and_title_in_place_of_every_perspective(run_dir: Path) -> None:
    said = embedded(run_dir)
    row = next(row for row in controlled(run_dir, "query_title") if row["pair_id"] == "0-drill-lamp")
    both = np.array(said["0-drill-lamp"]["query"]) + np.array(said["0-drill-lamp"]["title"])
    np.testing.assert_allclose(row["targets"], [both / np.linalg.norm(both)] * 2, rtol=1e-5)
    silent = next(row for row in controlled(run_dir, "query_title") if row["pair_id"] == "0-mug-lamp")
    assert silent["target_mask"].tolist() == [True, False]


@pytest.mark.parametrize("control", ["permuted", "template", "query_title", "nearest_title"])
def test_a_control_without_its_vectors(run_dir: Path, control: str) -> None:
    with pytest.raises(UserError, match=f"student.control: 8-targets has no vectors for '{control}'"):
        controlled(run_dir, control)


@pytest.mark.parametrize(
    ("target", "per_perspective", "places", "width"),
    [
        ("vote", True, 2, 3),
        ("vote", False, 1, 3),
        ("mean", False, 1, 3),
        ("concat", False, 1, 6),
        ("rules", False, 1, 3),
    ],
)
def test_transformed_vectors_are_combined_as_others_are(
    run_dir: Path, target: str, per_perspective: bool, places: int, width: int
) -> None:
    said = embedded(run_dir)["0-drill-lamp"]
    path = run_dir / "8-targets/targets.parquet"
    maps = fit_maps(path, training_pairs(run_dir / "1-pairs/pairs.parquet"), RESIDUAL)
    save_maps(path.parent / MAP, maps)
    given = settings(run_dir, width=3, target=target, per_perspective=per_perspective)
    row = next(row for row in StudentRows(given, ("train",)) if row["pair_id"] == "0-drill-lamp")
    assert row["targets"].shape == (places, width) and row["target_mask"].tolist() == [True] * places
    features = np.array(said["query"] + said["title"], np.float32)
    first, second = maps["vectors"].apply(said["vectors"], features)
    assert first is not None and second is not None
    judged = next(row for row in read_table(given.judgements).to_pylist() if row["pair_id"] == "0-drill-lamp")
    made = {
        "vote": [(first, second)[voters("0-drill-lamp", judged, given.scheme)[0]]],
        "mean": [(first + second) / 2],
        "concat": [np.concatenate([first, second])],
        "rules": [second],
    }
    np.testing.assert_allclose(row["targets"], [first, second] if per_perspective else made[target], rtol=1e-4)


def test_centred_vectors_of_the_training_pairs_have_mean_0(run_dir: Path) -> None:
    embedded(run_dir)
    path = run_dir / "8-targets/targets.parquet"
    centred = TargetSettings(transform="centred", controls=("template",))
    save_maps(path.parent / MAP, fit_maps(path, training_pairs(run_dir / "1-pairs/pairs.parquet"), centred))
    for control in ("none", "template"):
        rows = controlled(run_dir, control)
        there = np.array([row["target_mask"] for row in rows])
        vectors = np.array([row["targets"] for row in rows])
        np.testing.assert_allclose(vectors.sum(0) / there.sum(0)[:, None], np.zeros((2, 6)), atol=1e-5)
    with pytest.raises(UserError, match=r"no vectors for 'permuted'"):
        controlled(run_dir, "permuted")


def test_soft_labels_are_calibrated(run_dir: Path) -> None:
    plain, sharp = (
        StudentRows(settings(run_dir, **fit), ("train",))[1]
        for fit in ({}, {"soft_temperature": 0.5, "soft_bias": (0.0, float(np.log(3)))})
    )
    assert plain["soft"] == [0.25, 0.75] and sharp["soft"] == pytest.approx([1 / 28, 27 / 28], abs=1e-6)


def test_soft_labels_are_fitted_to_the_gold_labels_of_dev(run_dir: Path) -> None:
    path = run_dir / "7-judgements/judgements.parquet"
    said = read_table(path).to_pylist()
    for row in said:
        row["soft"] = [0.5, 0.5] if row["pair_id"].startswith("2-") else [0.9, 0.1]  # the third turn is dev
    write_table(path, pa.Table.from_pylist(said, JUDGEMENT))
    fitted = with_calibrated_labels(settings(run_dir))
    # 4 of the 16 dev pairs are relevant: an undecided teacher gets the shares of the labels.
    assert fitted.soft_bias[1] - fitted.soft_bias[0] == pytest.approx(np.log(3), abs=1e-3)
    assert StudentRows(fitted, ("dev",))[0]["soft"] == pytest.approx([0.25, 0.75], abs=1e-3)


def test_without_judged_dev_pairs_soft_labels_stay_raw(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_dir / "7-judgements/judgements.parquet"
    table = read_table(path)
    write_table(path, table.filter(pc.invert(pc.starts_with(table["pair_id"], "2-"))))
    given = settings(run_dir)
    assert with_calibrated_labels(given) == given
    assert "no labelled dev pair was judged" in capsys.readouterr().out


def test_rows_are_a_sequence(run_dir: Path) -> None:
    rows = StudentRows(settings(run_dir), ("dev", "test"))
    assert rows[-1]["pair_id"] == rows[31]["pair_id"] and len(rows[2:5]) == 3
    with pytest.raises(IndexError):
        rows[32]


def test_surplus_votes_are_left_out_by_a_hash() -> None:
    # 3 of 4 training labels are A, so that of 8 votes at most 6 may be A and 2 B; C is never a training label.
    gold = [(f"t{n}", "AAAB"[n], "train") for n in range(4)] + [("d", "C", "dev")]
    votes = {f"u{n}": "ABBBBBBC"[n] for n in range(8)}
    open_pairs = [(name, None, "unlabelled") for name in (*votes, "unjudged")]
    dropped = surplus([*gold, *open_pairs], votes)
    assert len(dropped & {f"u{n}" for n in range(1, 7)}) == 4 and dropped >= {"u7"} and len(dropped) == 5
    assert surplus([*reversed(open_pairs), *gold], votes) == dropped


def test_balanced_rows_have_no_more_of_a_vote_than_the_labels_have(run_dir: Path) -> None:
    """Of the shop's training labels, and of its unlabelled votes, one in four is yes; more yes than that are cut."""
    path = run_dir / "7-judgements/judgements.parquet"
    table = read_table(path)
    votes = [YES if own.startswith("4-") else vote for own, vote in
             zip(table["pair_id"].to_pylist(), table["vote"].to_pylist(), strict=True)]  # fmt: skip
    write_table(path, table.set_column(table.column_names.index("vote"), "vote", [votes]))
    rows = StudentRows(settings(run_dir, unlabelled_balance="gold"), ("train", "unlabelled"))
    assert rows.labels()[32:] == [BINARY.index(YES)] * 4 and len(rows) == 36
    assert (rows.surplus, rows.unusable) == (12, 0)
    assert len(StudentRows(settings(run_dir), ("train", "unlabelled"))) == 48


def test_without_a_judged_dev_pair_a_vote_weighs_as_much_as_perspectives_agree() -> None:
    vote = {"vote": YES, "agreement": 0.5, "soft": [0.8, 0.2] if BINARY.index(YES) == 0 else [0.2, 0.8]}
    assert vote_weight(vote, None, BINARY) == 0.5
    # p^(1/T), scaled: at T = 2 the square roots 0.894 and 0.447 make 2/3.
    assert vote_weight(vote, 2.0, BINARY) == pytest.approx(2 / 3)
