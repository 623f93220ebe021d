"""The linear map that makes the rationales' vectors say more than the topic. It is fitted on training pairs.

`centred` takes away the mean over the training pairs. `residual` takes away what a ridge regression tells from the
frozen vectors of query and title, and whitens what is left:

- Ridge regression, one per perspective: B = (X'X + k I)^-1 X'Y with X and Y centred; Hoerl and Kennard 1970,
  "Ridge Regression: Biased Estimation for Nonorthogonal Problems", eq. 2.1. Its k is the one of `STRENGTHS` with the
  least generalised cross-validation n RSS(k) / (n - df(k))^2; Golub, Heath and Wahba 1979, "Generalized
  Cross-Validation as a Method for Choosing a Good Ridge Parameter". RSS is summed over the numbers of a vector, and
  df(k) counts the mean as well.
- Whitening by principal components: z = L^-1/2 U'(y - a - xB), where U holds the K directions in which the residuals of
  all perspectives together vary most and L their variances ("PCA whitening" in Kessy, Lewin and Strimmer 2018,
  arXiv 1512.00809). Divided by the root of K the vectors have a mean square length of 1. There is one U for all
  perspectives, so that their mean has a meaning.

Everything follows from sums over pairs, so memory does not grow with their number.

Shapes: N pairs, P perspectives, F numbers of a query's and a title's vector together, H encoder width, K dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import load_file, save_file

from cluster.base.errors import UserError
from cluster.base.tables import batches_of, read_table
from distill.config import TargetSettings

MAP = "map.safetensors"
STRENGTHS = 10.0 ** np.arange(-3, 4.5, 0.5)  # of the ridge, in units of the mean eigenvalue of X'X
FLAT = 1e-6  # directions with less than this share of the largest variance are not blown up to the same length
COLUMNS = {"query_title": ("query", "title")}  # the columns that a control is made of, if not one of its name
Vectors = list[np.ndarray | None]


@dataclass(frozen=True)
class TargetMap:
    """z_p = yW - a_p - xS_p: `intercepts` a PxK, `slopes` S PxFxK, and `whitening` W HxK, or None for the identity."""

    intercepts: np.ndarray
    slopes: np.ndarray
    whitening: np.ndarray | None = None

    def apply(self, vectors: Sequence[Any], features: np.ndarray) -> Vectors:
        """Return a pair's P vectors transformed; missing ones stay None.

        Args:
            vectors: P vectors of H numbers, or None.
            features: F numbers.
        """
        there = [None if v is None else np.asarray(v, np.float32) for v in vectors]
        flat = [v if v is None or self.whitening is None else v @ self.whitening for v in there]
        shift = self.intercepts + features @ self.slopes  # PxK
        return [None if v is None else v - shift[p] for p, v in enumerate(flat)]


class Moments:
    """Sums over training pairs of the products of [features, 1] and vectors, per perspective and in float64."""

    def __init__(self, perspectives: int, features: int, width: int) -> None:
        self.inputs = np.zeros((perspectives, features + 1, features + 1))
        self.both = np.zeros((perspectives, features + 1, width))
        self.outputs = np.zeros((perspectives, width, width))

    def add(self, vectors: np.ndarray, there: np.ndarray, features: np.ndarray) -> None:
        """Add N pairs: their vectors NxPxH, a mask NxP, true where there is a vector, and their features NxF."""
        x = np.hstack([features, np.ones((len(vectors), 1))]).astype(np.float64)
        for p, mask in enumerate(there.T):
            inputs, outputs = x[mask], vectors[mask, p].astype(np.float64)
            self.inputs[p] += inputs.T @ inputs
            self.both[p] += inputs.T @ outputs
            self.outputs[p] += outputs.T @ outputs

    def centred(self) -> TargetMap:
        """Return the map that takes the means away, those of perspectives without vectors being 0."""
        means = self.both[:, -1] / np.maximum(self.inputs[:, -1, -1:], 1)
        return TargetMap(_float32(means), np.zeros((len(means), 0, means.shape[1]), np.float32))

    def residual(self, dimensions: int) -> TargetMap:
        """Return the map that takes away what the features tell, and whitens the rest to K = `dimensions` numbers."""
        fits = [_ridge(*moments) for moments in zip(self.inputs, self.both, self.outputs, strict=True)]
        scatter = np.sum([fit.scatter for fit in fits], axis=0) / max(self.inputs[:, -1, -1].sum(), 1)
        variances, directions = np.linalg.eigh(scatter)  # from the smallest to the largest
        kept = np.maximum(variances[::-1][:dimensions], max(FLAT * variances[-1], 1e-12))
        whitening = directions[:, ::-1][:, :dimensions] / np.sqrt(kept * dimensions)
        slopes, intercepts = (
            np.array([part @ whitening for part in parts]) for parts in zip(*(f.line for f in fits), strict=True)
        )
        return TargetMap(_float32(intercepts), _float32(slopes), _float32(whitening))


@dataclass(frozen=True)
class _Ridge:
    """`line`: slopes FxH and intercept H. `scatter`: the sum of the products of the residuals, HxH."""

    line: tuple[np.ndarray, np.ndarray]
    scatter: np.ndarray


def _ridge(inputs: np.ndarray, both: np.ndarray, outputs: np.ndarray) -> _Ridge:
    """Fit one perspective from its moments, with the strength that generalised cross-validation chooses."""
    count = max(inputs[-1, -1], 1)
    x_mean, y_mean = inputs[-1, :-1] / count, both[-1] / count
    xx = inputs[:-1, :-1] - count * np.outer(x_mean, x_mean)
    xy = both[:-1] - count * np.outer(x_mean, y_mean)
    yy = outputs - count * np.outer(y_mean, y_mean)
    values, axes = np.linalg.eigh(xx)
    values, turned = np.maximum(values, 0), axes.T @ xy
    unit = max(float(values.mean()), 1e-12)
    best = min(STRENGTHS * unit, key=lambda k: _cross_validation(k, count, values, turned, float(np.trace(yy))))
    slopes = axes @ (turned / (values + best)[:, None])
    told = slopes.T @ xy
    return _Ridge((slopes, y_mean - x_mean @ slopes), yy - told - told.T + slopes.T @ xx @ slopes)


def _cross_validation(strength: float, count: float, values: np.ndarray, turned: np.ndarray, total: float) -> float:
    """Return n RSS / (n - df)^2, from the eigenvalues of X'X and the products X'Y in their axes."""
    left = count - 1 - float((values / (values + strength)).sum())
    share = (values + 2 * strength) / (values + strength) ** 2
    rest = total - float((np.square(turned).sum(axis=1) * share).sum())
    return count * rest / left**2 if left > 0.5 else np.inf


def fit_maps(targets: Path, train: Iterable[str], settings: TargetSettings) -> dict[str, TargetMap]:
    """Fit a map to each column of vectors of `targets.parquet`, on the `train` pairs alone.

    Raises:
        UserError: no training pair has vectors, or there are more dimensions than the encoder has.
    """
    features = features_of(settings.transform)
    columns = ["vectors", *(name for name in settings.controls if name != "nearest_title")]
    read = sorted({"pair_id", *features, *(part for name in columns for part in COLUMNS.get(name, (name,)))})
    chosen, moments, width = pa.array(sorted({*train}), pa.string()), dict[str, Moments](), 0
    for batch in batches_of(targets, read):
        rows = batch.filter(pc.is_in(batch["pair_id"], value_set=chosen))
        if not rows.num_rows:
            continue
        own, there = per_perspective(rows["vectors"])
        width = own.shape[2]
        x = np.hstack([np.zeros((len(own), 0)), *(single(rows[name]) for name in features)])
        for column in columns:
            found = (own, there) if column == "vectors" else _control(rows, column, width, there)
            moments.setdefault(column, Moments(there.shape[1], x.shape[1], width)).add(*found, x)
    if not moments:
        raise UserError(
            f"targets.transform: {settings.transform!r} is fitted on training pairs, and none has a rationale. Have "
            "the teacher judge some (judge.splits), or set it to 'none'."
        )
    if settings.transform == "residual" and settings.dimensions > width:
        raise UserError(f"targets.dimensions: {settings.dimensions} is more than the {width} numbers of the encoder")
    centred = settings.transform == "centred"
    return {name: sums.centred() if centred else sums.residual(settings.dimensions) for name, sums in moments.items()}


def refit(folder: Path, train: Iterable[str]) -> None:
    """Fit the map in a folder anew, to other training pairs; a folder without one stays as it is."""
    if not (folder / MAP).exists():
        return
    before = load_maps(folder / MAP)
    whitening = before["vectors"].whitening
    settings = TargetSettings(
        transform="centred" if whitening is None else "residual",
        controls=tuple(name for name in before if name != "vectors"),
    )
    if whitening is not None:
        settings = settings.model_copy(update={"dimensions": whitening.shape[1]})
    maps = fit_maps(folder / "targets.parquet", train, settings)
    (folder / MAP).unlink()  # it may be a link to the run's own
    save_maps(folder / MAP, maps)


def training_pairs(pairs: Path) -> list[str]:
    """Return the ids of the pairs of the split `train`, which are the only ones that a map is fitted on."""
    table = read_table(pairs, ["pair_id", "split"])
    return list(table.filter(pc.equal(table["split"], "train"))["pair_id"].to_pylist())


def features_of(transform: str) -> tuple[str, ...]:
    """Return the columns whose vectors a transform takes into account."""
    return ("query", "title") if transform == "residual" else ()


def _control(rows: pa.RecordBatch, column: str, width: int, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if column != "query_title":
        return per_perspective(rows[column], width)
    both = query_title(single(rows["query"]), single(rows["title"]))
    return np.repeat(both[:, None], own.shape[1], axis=1), own


def query_title(query: np.ndarray, title: np.ndarray) -> np.ndarray:
    """Return the unit vector between those of query and title: ...xH, ...xH -> ...xH."""
    both = query + title
    return both / np.maximum(np.linalg.norm(both, axis=-1, keepdims=True), 1e-12)


def single(column: pa.ListArray) -> np.ndarray:
    """Return a column of vectors as NxH."""
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def per_perspective(column: pa.ListArray, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return a column of lists of vectors as NxPxH, zero where a vector is missing, and a mask NxP."""
    each = column.flatten()
    there = np.asarray(each.is_valid())
    values = each.drop_null().flatten().to_numpy(zero_copy_only=False)
    width = width or len(values) // max(int(there.sum()), 1)
    vectors = np.zeros((len(there), width), np.float32)
    vectors[there] = values.reshape(-1, width)
    return vectors.reshape(len(column), -1, width), there.reshape(len(column), -1)


def save_maps(path: Path, maps: Mapping[str, TargetMap]) -> None:
    """Write maps, by the name of their column, as one safetensors file."""
    parts = {f"{name}.{part}": value for name, one in maps.items() for part, value in vars(one).items()}
    save_file({name: np.ascontiguousarray(value) for name, value in parts.items() if value is not None}, path)


def load_maps(path: Path) -> dict[str, TargetMap]:
    """Read what `save_maps` wrote."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, value in load_file(path).items():
        column, _, part = name.partition(".")
        parts.setdefault(column, {})[part] = value
    return {column: TargetMap(**found) for column, found in parts.items()}


def _float32(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32)
