from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import Ridge

from cluster.base.errors import UserError
from cluster.base.tables import write_table
from distill.config import TargetSettings
from distill.targets.linear_map import (
    MAP,
    STRENGTHS,
    Moments,
    TargetMap,
    fit_maps,
    load_maps,
    per_perspective,
    query_title,
    refit,
    save_maps,
)
from mpcot.records import TARGET

DRAW = np.random.default_rng(5)


def settings(**changes: Any) -> TargetSettings:
    return TargetSettings(**({"transform": "residual", "dimensions": 2} | changes))


def moments(vectors: np.ndarray, features: np.ndarray, there: np.ndarray | None = None, parts: int = 1) -> Moments:
    """The sums over N pairs, added in several parts as stage 8 does."""
    found = Moments(vectors.shape[1], features.shape[1], vectors.shape[2])
    there = np.ones(vectors.shape[:2], bool) if there is None else there
    for rows in np.array_split(np.arange(len(vectors)), parts):
        found.add(vectors[rows], there[rows], features[rows])
    return found


def data(count: int = 40, perspectives: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Vectors NxPx4 that are largely a function of features Nx6."""
    x = DRAW.normal(size=(count, 6))
    y = np.stack([x @ DRAW.normal(size=(6, 4)) + DRAW.normal(size=(count, 4)) + p for p in range(perspectives)], 1)
    return y, x


def targets_file(path: Path, vectors: np.ndarray, features: np.ndarray, **more: Any) -> Path:
    half = features.shape[1] // 2
    rows = [
        {"pair_id": f"p{n}", "vectors": y.tolist(), "query": x[:half].tolist(), "title": x[half:].tolist()}
        | {name: values[n] for name, values in more.items()}
        for n, (y, x) in enumerate(zip(vectors, features, strict=True))
    ]
    return write_table(path, pa.Table.from_pylist(rows, TARGET))


def test_centred_takes_each_perspectives_mean_away() -> None:
    vectors = np.array([[[1.0, 2.0], [0.0, 8.0]], [[3.0, 6.0], [9.0, 9.0]]])
    there = np.array([[True, True], [True, False]])
    found = moments(vectors, np.zeros((2, 0)), there).centred()
    np.testing.assert_allclose(found.intercepts, [[2, 4], [0, 8]])
    left = found.apply([np.array([3.0, 6.0]), None], np.zeros(0))
    assert left[0] is not None and left[0].tolist() == [1, 2] and left[1] is None


def test_one_feature_and_one_number_by_hand() -> None:
    """x = -1, 0, 1 and y = 0, 0, 3: variance sum 2, product 3, so that the slope is 3 / (2 + k) and the mean 1."""
    found = moments(np.array([[[0.0]], [[0.0]], [[3.0]]]), np.array([[-1.0], [0.0], [1.0]])).residual(1)
    gcv = {}
    for k in 2 * STRENGTHS:
        slope = 3 / (2 + k)
        rest = (-1 + slope) ** 2 + 1 + (2 - slope) ** 2
        gcv[k] = 3 * rest / (3 - 1 - 2 / (2 + k)) ** 2
    slope = 3 / (2 + min(gcv, key=gcv.__getitem__))
    left = np.array([-1 + slope, -1, 2 - slope])
    made = [found.apply([np.array([y])], np.array([x]))[0] for x, y in ((-1, 0), (0, 0), (1, 3))]
    sign = np.sign(made[2][0])  # type: ignore[index]
    np.testing.assert_allclose(sign * np.ravel(made), left / np.sqrt((left**2).mean()), rtol=1e-5)


def test_residuals_are_those_of_scikit_learns_ridge_at_one_of_the_strengths() -> None:
    vectors, features = data()
    found = moments(vectors, features).residual(4)
    assert found.whitening is not None
    centred = features - features.mean(0)
    unit = np.square(centred).sum() / features.shape[1]
    for p in range(2):
        slopes = found.slopes[p] @ np.linalg.inv(found.whitening)
        fits = [Ridge(alpha=k * unit).fit(features, vectors[:, p]).coef_.T for k in STRENGTHS]
        assert min(np.abs(slopes - fit).max() for fit in fits) < 1e-4


def test_what_the_features_tell_is_gone_and_the_rest_is_white() -> None:
    vectors, features = data(400)
    found = moments(vectors, features).residual(4)
    made = np.array([found.apply(list(y), x) for y, x in zip(vectors, features, strict=True)])
    flat = made.reshape(-1, 4)
    np.testing.assert_allclose(flat.T @ flat / len(flat), np.eye(4) / 4, atol=1e-5)
    assert np.abs(np.corrcoef(np.hstack([features, made[:, 0]]).T)[:6, 6:]).max() < 0.02
    np.testing.assert_allclose(np.square(flat).sum(1).mean(), 1, rtol=1e-4)


def test_pairs_added_in_parts_give_the_same_map() -> None:
    vectors, features = data()
    there = DRAW.random((40, 2)) < 0.7
    whole, parts = (moments(vectors, features, there, n).residual(3) for n in (1, 5))
    y, x = list(vectors[0]), features[0]
    for one, other in zip(whole.apply(y, x), parts.apply(y, x), strict=True):
        np.testing.assert_allclose(np.abs(one), np.abs(other), atol=1e-4)  # type: ignore[arg-type]


def test_more_features_than_pairs_leave_finite_residuals() -> None:
    found = moments(DRAW.normal(size=(5, 1, 3)), DRAW.normal(size=(5, 20))).residual(3)
    assert all(np.isfinite(part).all() for part in (found.intercepts, found.slopes, found.whitening))


@pytest.mark.parametrize("transform", ["centred", "residual"])
def test_a_map_is_fitted_on_training_pairs_only(tmp_path: Path, transform: str) -> None:
    vectors, features = data()
    own = settings(transform=transform) if transform == "residual" else TargetSettings(transform="centred")
    train = [f"p{n}" for n in range(30)]
    path = targets_file(tmp_path / "targets.parquet", vectors, features)
    before = fit_maps(path, train, own)["vectors"]
    vectors[30:] += 100 * DRAW.normal(size=(10, 2, 4))
    features[30:] -= 7
    after = fit_maps(targets_file(tmp_path / "targets.parquet", vectors, features), train, own)["vectors"]
    for one, other in zip(vars(before).values(), vars(after).values(), strict=True):
        assert np.array_equal(one, other)
    whole = fit_maps(path, [f"p{n}" for n in range(40)], own)["vectors"]
    assert not np.allclose(whole.intercepts, before.intercepts, atol=1e-2)


def test_each_column_of_a_control_has_a_map_of_its_own(tmp_path: Path) -> None:
    vectors, features = data(6)
    other = [(y + 5).tolist() if n else [None, (y[1] + 5).tolist()] for n, y in enumerate(vectors)]
    features = features[:, :4].repeat(2, 1)  # queries and titles as wide as rationales
    path = targets_file(tmp_path / "targets.parquet", vectors, features, template=other)
    own = TargetSettings(transform="centred", controls=("template", "query_title"))
    found = fit_maps(path, [f"p{n}" for n in range(6)], own)
    assert set(found) == {"vectors", "template", "query_title"}
    np.testing.assert_allclose(found["template"].intercepts[0], vectors[1:, 0].mean(0) + 5, rtol=1e-5)
    np.testing.assert_allclose(found["template"].intercepts[1], vectors[:, 1].mean(0) + 5, rtol=1e-5)
    both = query_title(features[:, :4], features[:, 4:])
    np.testing.assert_allclose(found["query_title"].intercepts, [both.mean(0)] * 2, atol=1e-5)


def test_query_and_title_meet_half_way() -> None:
    found = query_title(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5]])


def test_missing_vectors_are_zero_and_masked() -> None:
    column = pa.array([[[1.0, 2.0], None], [None, [3.0, 4.0]]], pa.list_(pa.list_(pa.float32())))
    vectors, there = per_perspective(column)
    assert vectors.tolist() == [[[1, 2], [0, 0]], [[0, 0], [3, 4]]] and there.tolist() == [[True, False], [False, True]]
    sliced, _ = per_perspective(column.slice(1))
    assert sliced.tolist() == [[[0, 0], [3, 4]]]


def test_nothing_to_fit_on(tmp_path: Path) -> None:
    path = targets_file(tmp_path / "targets.parquet", *data(3))
    with pytest.raises(UserError, match=r"targets.transform: 'residual' is fitted on training pairs, and none has"):
        fit_maps(path, [], settings())
    with pytest.raises(UserError, match=r"targets.dimensions: 5 is more than the 4 numbers of the encoder"):
        fit_maps(path, ["p0"], settings(dimensions=5))


def test_maps_are_read_as_they_were_written(tmp_path: Path) -> None:
    plain = TargetMap(np.ones((1, 2), np.float32), np.zeros((1, 0, 2), np.float32))
    white = TargetMap(*(np.full(shape, 3, np.float32) for shape in ((1, 2), (1, 4, 2), (3, 2))))
    save_maps(tmp_path / MAP, {"vectors": plain, "template": white})
    found = load_maps(tmp_path / MAP)
    assert found["vectors"].whitening is None and found["vectors"].slopes.shape == (1, 0, 2)
    assert found["template"].whitening is not None and np.array_equal(found["template"].slopes, white.slopes)


@pytest.mark.parametrize("own", [settings(), TargetSettings(transform="centred", controls=("query_title",))])
def test_a_map_is_fitted_anew_to_other_training_pairs(tmp_path: Path, own: TargetSettings) -> None:
    vectors, _ = data(20)
    path = targets_file(tmp_path / "targets.parquet", vectors, DRAW.normal(size=(20, 8)))
    first, second = [f"p{n}" for n in range(10)], [f"p{n}" for n in range(10, 20)]
    (tmp_path / "run").mkdir()
    save_maps(tmp_path / "run" / MAP, fit_maps(path, first, own))
    (tmp_path / MAP).symlink_to(tmp_path / "run" / MAP)
    refit(tmp_path, second)
    wanted, found, kept = fit_maps(path, second, own), load_maps(tmp_path / MAP), load_maps(tmp_path / "run" / MAP)
    assert found.keys() == wanted.keys()
    assert np.array_equal(found["vectors"].intercepts, wanted["vectors"].intercepts)
    assert np.array_equal(kept["vectors"].intercepts, fit_maps(path, first, own)["vectors"].intercepts)
