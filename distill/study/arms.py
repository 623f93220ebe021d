"""The rows of the result table, read from a file: named changes of the student's settings."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, PositiveInt, ValidationError, model_validator

from cluster.base.errors import UserError
from cluster.config import Settings
from distill.config import EmbeddedControl, StudentSettings
from distill.study.config import Comparison, StudyConfig, without_effect

SHIPPED = Path(__file__).with_name("arms.toml")
Role = Literal["baseline", "soft_labels", "rival", "candidate", "control", "ceiling"]
Weight = Literal["alignment_weight", "soft_label_weight"]
# What only the alignment reads, and so may differ between a row and its twin with lambda 0.
OF_ALIGNMENT = (
    "alignment_weight", "alignment", "alignment_schedule", "target", "target_pairs", "reduction", "normalise_targets",
    "temperature",
)  # fmt: skip


class Reading(Settings):
    """Who reads the teacher's rationales, behind the title of the pair's product, and what of them.

    If the `student` itself does, in its tests too, the row is a ceiling: rationales are not at hand where a student
    serves. A `reader` teaches the student in the teacher's place, see `distill.study.reader`.
    """

    by: Literal["student", "reader"]
    text: Literal["rationale", "rationale+verdict"] = "rationale"  # as for `targets.text`
    tokens: PositiveInt = 192  # that are read of all rationales of a pair, besides `student.max_tokens`


class StudyRow(Settings):
    """One row: what it changes of a student trained on labels only, and which weights the study's tuning sets.

    `twin` names the row that has the same settings with lambda 0. `of` names the row whose settings, lambda included,
    a control starts from.
    """

    name: str
    title: str
    role: Role
    twin: str | None = None
    of: str | None = None
    weights: tuple[Weight, ...] = ()
    changes: dict[str, Any] = Field(default_factory=dict)
    each_perspective: bool = False
    needs_unlabelled: bool = False
    reading: Reading | None = None

    @model_validator(mode="after")
    def _ceiling(self) -> StudyRow:
        """Refuse to hold a student that reads rationales for one that can be served."""
        if (self.role == "ceiling") != (self.reading is not None and self.reading.by == "student"):
            raise ValueError("the role ceiling and reading = { by = 'student' } need each other")
        return self


Rows = tuple[StudyRow, ...]


def load_rows(
    config: StudyConfig, perspectives: Iterable[str], own: Sequence[str] = (), unlabelled: bool = False
) -> Rows:
    """Return the study's rows in the order of the file. A row for each perspective becomes as many rows.

    Args:
        own: names of the data set's own rows; if empty, the study's rows are taken.
        unlabelled: whether the data set has unlabelled pairs; without them, rows that need such pairs are left out.

    Raises:
        UserError: the file does not describe rows, it lacks one of the names, a role has too few or too many rows, or
            a row's twin or the row that it controls is missing or is not what it should be.
    """
    path = Path(config.rows_file) if config.rows_file else SHIPPED
    rows = _read(path)
    names = own or config.rows or tuple(rows)
    if unknown := [name for name in names if name not in rows]:
        raise UserError(f"rows: {unknown[0]!r} is not in {path}, which has {', '.join(rows)}")
    chosen = [row for name, row in rows.items() if name in names and (unlabelled or not row.needs_unlabelled)]
    for role, least, most in (("baseline", 1, 1), ("soft_labels", 0, 1), ("candidate", 1, len(rows))):
        found = sum(row.role == role for row in chosen)
        if not least <= found <= most:
            raise UserError(f"rows: {found} of {', '.join(names)} have the role {role}; give {least} to {most} of them")
    _check_links(chosen, config.student)
    return tuple(one for row in chosen for one in _per_perspective(_completed(row, rows), perspectives))


def named(rows: Iterable[StudyRow], role: Role) -> StudyRow | None:
    """Return the first row of a role."""
    return next((row for row in rows if row.role == role), None)


def primary_rows(rows: Rows, primary: Comparison | None) -> set[str]:
    """Return the names of the rows that the primary claim rests on: both of the test, the twin, KL and the controls.

    Raises:
        UserError: one of the two is not a row of the data set, or it is a ceiling.
    """
    if primary is None:
        return set()
    by_name = {row.name: row for row in rows}
    for field in ("row", "against"):
        if (name := getattr(primary, field)) not in by_name:
            raise UserError(f"primary.{field}: {name!r} is not one of the rows {', '.join(by_name)}")
        if by_name[name].role == "ceiling":
            raise UserError(f"primary.{field}: {name!r} cannot be served, so it is in no test. Name another row.")
    found = {primary.row, primary.against, by_name[primary.row].twin}
    found |= {row.name for row in rows if row.of == primary.row or row.role == "soft_labels"}
    return {name for name in found if name in by_name}


def student_of(row: StudyRow, base: StudentSettings) -> StudentSettings:
    """Return the settings that the row trains with, before tuning.

    Raises:
        UserError: a change names an unknown setting, gives it a wrong value, or has no effect.
    """
    if "model" in row.changes:
        raise UserError(f"row {row.name}: model: all rows start from student.model. Make a study for each encoder.")
    try:
        student = StudentSettings(**_merged(base.plain().model_dump(), row.changes))
        for name in without_effect(student.train):
            raise UserError(f"row {row.name}: train.{name} has no effect in a study. Leave it out; see [tuning].")
        return student
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "changes"
        raise UserError(f"row {row.name}: {place}: {first['msg']} (given: {first.get('input')!r})") from error


def _completed(row: StudyRow, rows: Mapping[str, StudyRow]) -> StudyRow:
    """Return a control as changes of a student trained on labels only, like all other rows."""
    if row.of is None:
        return row
    start = rows[row.of]
    weights = row.weights or start.weights
    taken = {"changes": _merged(start.changes, row.changes), "weights": weights, "reading": start.reading}
    return row.model_copy(update=taken)


def _check_links(rows: Sequence[StudyRow], base: StudentSettings) -> None:
    """Refuse a control of nothing, a twin that differs beyond the alignment, and a weight that nothing chooses."""
    by_name = {row.name: row for row in rows}
    for row in rows:
        for field in ("twin", "of"):
            if (name := getattr(row, field)) is not None and name not in by_name:
                raise UserError(f"row {row.name}: {field}: {name!r} is not among the rows. Add it, or leave both out.")
        if row.of is not None:
            _check_control(row, by_name[row.of])
        if row.role == "candidate" and row.twin is None:
            raise UserError(f"row {row.name}: twin: a candidate needs one, its own settings with lambda 0.")
        if row.twin is None or row.of is not None or row.each_perspective:
            continue
        twin = by_name[row.twin]
        if "alignment_weight" in twin.weights:
            raise UserError(f"row {row.name}: twin: {twin.name!r} is tuned in lambda, which must be 0 there")
        if row.reading != twin.reading:
            raise UserError(f"row {row.name}: twin: {twin.name!r} differs in reading, not in lambda alone")
        own, other = (student_of(one, base).model_dump(exclude=set(OF_ALIGNMENT)) for one in (row, twin))
        if different := [name for name, value in own.items() if value != other[name]]:
            raise UserError(f"row {row.name}: twin: {twin.name!r} differs in {different[0]}, not in lambda alone")
        if {*row.weights} - {"alignment_weight"} != {*twin.weights}:
            raise UserError(f"row {row.name}: twin: {twin.name!r} has other weights than those beside lambda")
    weighted = next((row.name for row in rows if "soft_label_weight" in row.weights), None)
    if weighted is not None and named(rows, "soft_labels") is None:
        raise UserError(
            f"row {weighted}: weights: soft_label_weight is chosen with the row of the role soft_labels, and there is "
            "none. Add it, such as kl."
        )


def _check_control(row: StudyRow, start: StudyRow) -> None:
    """Refuse a control of a row without targets of its own, and vectors that the targets of a reader do not have."""
    if start.of is not None:
        raise UserError(f"row {row.name}: of: {start.name!r} is a control itself. Name the row that it controls.")
    if start.role == "ceiling":
        raise UserError(f"row {row.name}: of: {start.name!r} is a ceiling, which has no targets. Name another row.")
    if start.reading is not None and (control := row.changes.get("control")) in get_args(EmbeddedControl):
        raise UserError(
            f"row {row.name}: changes.control: {control!r} needs vectors of a sentence encoder, and {start.name!r} has "
            "those of a reader. Choose shuffled, same_verdicts or half."
        )


def _merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the changes applied. Within `train`, settings that are not changed stay as they were."""
    merged = {**settings, **changes}
    if isinstance(changes.get("train"), dict):
        merged["train"] = settings.get("train", {}) | changes["train"]
    return merged


def _read(path: Path) -> dict[str, StudyRow]:
    try:
        data: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: StudyRow(name=name, **row) for name, row in data.items()}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError, TypeError) as error:
        raise UserError(f"rows_file: {path} does not describe rows: {error}") from error


def _per_perspective(row: StudyRow, perspectives: Iterable[str]) -> list[StudyRow]:
    """Return one row for each perspective, whose name takes the place of `{perspective}`, if the row asks for that."""
    if not row.each_perspective:
        return [row]
    text = row.model_copy(update={"name": f"{row.name}_{{perspective}}"}).model_dump_json()
    return [StudyRow.model_validate_json(text.replace("{perspective}", name)) for name in perspectives]
