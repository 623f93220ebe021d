"""The student's training rows: pairs joined with the teacher's judgements and target vectors when they are needed.

Shapes: P perspectives, L latent vectors (P, or 1), D width of one latent vector, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pydantic import Field

from cluster.base.progress import console
from cluster.base.tables import read_table
from cluster.config import Settings
from distill.lrkd.unlabelled import dev_temperature, judged_on_dev, surplus, vote_weight
from distill.targets.donors import Matched, mean_vectors, nearest_donors, random_donors, ring_donors
from distill.targets.linear_map import Vectors
from distill.targets.vector_table import TargetTable, positions
from mpcot.schemes.scheme import Scheme
from mpcot.temperature import fit_over_queries, scaled

# Without the rationales, which are most of the file.
JUDGED = ["pair_id", "vote", "agreement", "soft", "verdicts", "perspective_soft"]
TAUGHT = ["train", "unlabelled"]  # the splits that students are trained on
TEXT = ["pair_id", "query_id", "query", "title", "brand", "description", "bullets", "attributes"]


class RowSettings(Settings):
    """Where the tables are, and how labels and targets are read from them."""

    pairs: Path
    judgements: Path
    targets: Path
    scheme: Scheme
    perspectives: tuple[str, ...]
    per_perspective: bool
    target: str
    width: int
    control: str = "none"
    alike: bool = Field(False, description="pairs learn the mean vectors of those that are alike")
    seed: int = Field(0, description="of the control's choice of donors")
    unlabelled_weight: float = 1.0
    soft_temperature: float = 1.0
    soft_bias: tuple[float, ...] = Field((), description="one number per label, or none")
    unlabelled_balance: Literal["none", "gold"] = "none"

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of a row's targets, L and D."""
        if self.per_perspective:
            return len(self.perspectives), self.width
        return 1, self.width * (len(self.perspectives) if self.target == "concat" else 1)


class StudentRows(Sequence[dict[str, Any]]):
    """Rows of the chosen splits in the order of the pairs file, each built when it is accessed.

    A row has the pair's text, the number of its `group` (all pairs of a query), `label` (an id), whether it is `gold`,
    the row's `weight`, the teacher's `soft` labels (C; zeros unless `judged`), `verdicts` (P ids, -1 for none), and
    `targets` (LxD) with `target_mask` (L).
    """

    def __init__(self, settings: RowSettings, splits: Sequence[str]) -> None:
        self.settings = settings
        judgements = read_table(settings.judgements, JUDGED)
        self.judged = positions(judgements)
        pairs = read_table(settings.pairs)
        voting = "unlabelled" in splits and len(self.judged)
        self.temperature = dev_temperature(pairs, judgements, settings.scheme) if voting else None
        too_many: set[str] = set()
        if voting and settings.unlabelled_balance == "gold":
            votes = zip(judgements["pair_id"].to_pylist(), judgements["vote"].to_pylist(), strict=True)
            known = (pairs[name].to_pylist() for name in ("pair_id", "label", "split"))
            too_many = surplus(zip(*known, strict=True), dict(votes))
        pairs = pairs.filter(pc.is_in(pairs["split"], value_set=pa.array(splits)))
        usable = [
            label is not None or (pair_id in self.judged and pair_id not in too_many)
            for label, pair_id in zip(pairs["label"].to_pylist(), pairs["pair_id"].to_pylist(), strict=True)
        ]
        self.surplus = len(too_many)
        self.unusable = len(usable) - sum(usable) - self.surplus
        self.pairs = pairs.filter(pa.array(usable, pa.bool_())).combine_chunks()
        self.groups = _numbered(self.pairs["query_id"].to_pylist())
        self.judgements = judgements
        self.targets = TargetTable(settings.targets, settings.control)
        self.sources = self._sources()
        self.means: dict[str, Vectors] = self._means() if settings.alike else {}

    def _sources(self) -> list[str | None]:
        """Return for every row the pair whose vectors it gets, its own or another one, or None if there is none."""
        ids: list[str] = self.pairs["pair_id"].to_pylist()
        control, seed = self.settings.control, self.settings.seed
        if control == "shuffled":
            return [*ring_donors(ids, seed)]
        if control not in ("same_verdicts", "nearest_title", "half"):
            return [*ids]
        # A pair without vectors of its own gets none here either, so that as many pairs are aligned.
        rows = [row for row in self._matched(self.pairs) if row[0] in self.targets.at]
        pool = self._matched(self._teachable())
        near = control == "nearest_title"
        donors = nearest_donors(rows, pool, self._title) if near else random_donors(rows, pool, seed)
        given = {pair_id: donor for (pair_id, _), donor in zip(rows, donors, strict=True)}
        if control == "half":
            given |= {ids[n]: ids[n] for n in np.random.default_rng(seed).permutation(len(ids))[: len(ids) // 2]}
        return [given.get(pair_id) for pair_id in ids]

    def _means(self) -> dict[str, Vectors]:
        """Return by id what the pairs with vectors learn; one whose group has no training pair learns none."""
        of_group = mean_vectors(self._matched(self._teachable()), lambda pair_id: self.targets.vectors(pair_id) or [])
        rows = [row for row in self._matched(self.pairs) if row[0] in self.targets.at]
        return {pair_id: of_group[group] for pair_id, group in rows if group in of_group}

    def _teachable(self) -> pa.Table:
        """Return the pairs that a student may be trained on and that have vectors: donors come from these alone."""
        pairs = read_table(self.settings.pairs, ["pair_id", "label", "split"])
        return pairs.filter(
            pc.and_(
                pc.is_in(pairs["split"], value_set=pa.array(TAUGHT)),
                pc.is_in(pairs["pair_id"], value_set=pa.array([*self.targets.at], pa.string())),
            )
        )

    def _matched(self, pairs: pa.Table) -> list[Matched]:
        """Return id and group of pairs: those with the same gold label, if any, and the same verdicts are in one."""
        verdicts = self.judgements["verdicts"]
        columns = zip(pairs["pair_id"].to_pylist(), pairs["label"].to_pylist(), strict=True)
        said = ((pair_id, label, self.judged.get(pair_id)) for pair_id, label in columns)
        return [(i, (label, None if at is None else tuple(verdicts[at].as_py()))) for i, label, at in said]

    def _title(self, pair_id: str) -> np.ndarray:
        return self.targets.one(pair_id, "title")

    @property
    def without_donor(self) -> int:
        """How many rows have vectors of their own and get none, because no other pair has their label and verdicts."""
        own = self.pairs["pair_id"].to_pylist()
        return sum(i in self.targets.at for i, source in zip(own, self.sources, strict=True) if source is None)

    def __len__(self) -> int:
        return self.pairs.num_rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        pair = _row(self.pairs, index)
        row = {name: pair.get(name) for name in TEXT}  # earlier versions wrote fewer
        return row | {"group": self.groups[index]} | self._teaching(pair, self.sources[index])

    def labels(self) -> list[int]:
        """Return the label ids of all rows."""
        ids = zip(self.pairs["label"].to_pylist(), self.pairs["pair_id"].to_pylist(), strict=True)
        votes = self.judgements["vote"] if len(self.judged) else []
        codes = (label if label is not None else votes[self.judged[pair]].as_py() for label, pair in ids)
        return [self.settings.scheme.index(code) for code in codes]

    def _teaching(self, pair: dict[str, Any], source: str | None) -> dict[str, Any]:
        """Return what the row teaches: the gold label, or without one the vote.

        A vote weighs `unlabelled_weight` times its probability, a gold label 1.
        """
        scheme, names = self.settings.scheme, self.settings.perspectives
        judgement = self._judgement(pair["pair_id"])
        gold = pair["label"] is not None
        # Only shuffling takes the other pair's verdicts, and who speaks for them: matched donors have the same.
        speaker = source if source and self.settings.control == "shuffled" else pair["pair_id"]
        reasoned = judgement if speaker == pair["pair_id"] else self._judgement(speaker)
        verdicts = reasoned["verdicts"] if reasoned else [None] * len(names)
        targets, mask = self._targets(source, voters(speaker, reasoned, scheme) if reasoned else [])
        return {
            "label": scheme.index(pair["label"] if gold else judgement["vote"]),  # type: ignore[index]
            "gold": gold,
            "weight": 1.0 if gold else self.settings.unlabelled_weight * self._sureness(judgement),
            "judged": judgement is not None,
            "soft": self._soft(judgement["soft"]) if judgement else [0.0] * len(scheme.labels),
            "verdicts": [-1 if code is None else scheme.index(code) for code in verdicts],
            "targets": targets,
            "target_mask": mask,
        }

    def _soft(self, said: list[float]) -> list[float]:
        own = self.settings
        if own.soft_temperature == 1 and not own.soft_bias:
            return said
        return list(scaled(np.array([said]), own.soft_temperature, own.soft_bias)[0].tolist())

    def _sureness(self, judgement: dict[str, Any] | None) -> float:
        assert judgement is not None, "a pair without label and vote is not usable"
        return vote_weight(judgement, self.temperature, self.settings.scheme)

    def _judgement(self, pair_id: str) -> dict[str, Any] | None:
        at = self.judged.get(pair_id)
        return None if at is None else _row(self.judgements, at)

    def _targets(self, pair_id: str | None, speakers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        learnt = self.means.get if self.settings.alike else self.targets.vectors
        vectors = None if pair_id is None else learnt(pair_id)
        if vectors is None:
            latents, width = self.settings.shape
            return np.zeros((latents, width), np.float32), np.zeros(latents, bool)
        return combine_targets(vectors, speakers, self.settings)


def voters(pair_id: str, judgement: Mapping[str, Any], scheme: Scheme) -> list[int]:
    """Return the places of the perspectives whose verdict is the vote, the surest of it first.

    Equally sure ones come in an order that the pair's id draws, so that none of them speaks for most of the pairs.
    """
    vote, shares = judgement["vote"], judgement["perspective_soft"]

    def rank(place: int) -> tuple[float, int]:
        return -shares[place][scheme.index(vote)], xxhash.xxh3_64_intdigest(f"{pair_id}/{place}".encode())

    return sorted((place for place, code in enumerate(judgement["verdicts"]) if code == vote), key=rank)


def with_calibrated_labels(settings: RowSettings) -> RowSettings:
    """Return the settings with the temperature, or that and biases, that fit the soft labels to the gold ones of dev.

    Without judged dev pairs they stay as they are, and a line says so.
    """
    pairs = read_table(settings.pairs, ["pair_id", "query_id", "label", "split"])
    judgements = read_table(settings.judgements, ["pair_id", "soft"])
    found = fit_over_queries(*judged_on_dev(pairs, judgements, settings.scheme))
    if found is None:
        reason = "no labelled dev pair was judged, so the teacher's soft labels stay raw"
        console().print(f"  student.soft_labels: {reason}", style="yellow", highlight=False)
        return settings
    return settings.model_copy(update={"soft_temperature": found[0], "soft_bias": found[1]})


def combine_targets(
    vectors: Sequence[np.ndarray | None], speakers: Sequence[int], settings: RowSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Turn a pair's vectors, one per perspective, into the targets of its latent vectors.

    `vote` takes the first vector that there is of the `speakers`, see `voters`, `mean` the mean of all that there are,
    and `concat` needs all of them.

    Returns: targets LxD, zero where missing, and a mask L, true where present.
    """
    if settings.per_perspective:
        chosen = list(vectors)
    elif settings.target == "vote":
        chosen = [next((vectors[place] for place in speakers if vectors[place] is not None), None)]
    elif settings.target == "mean":
        present = [v for v in vectors if v is not None]
        chosen = [np.mean(present, axis=0) if present else None]
    elif settings.target == "concat":
        chosen = [None if any(v is None for v in vectors) else np.concatenate(list(vectors))]
    else:
        chosen = [vectors[settings.perspectives.index(settings.target)]]
    combined = np.zeros(settings.shape, np.float32)
    for i, vector in enumerate(chosen):
        if vector is not None:
            combined[i] = vector
    return combined, np.array([v is not None for v in chosen])


def _numbered(values: Sequence[str]) -> list[int]:
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return [numbers[value] for value in values]


def _row(table: pa.Table, index: int) -> dict[str, Any]:
    return {name: table.column(name)[index].as_py() for name in table.column_names}
