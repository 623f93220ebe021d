"""The rows of the result table, read from a file: named changes of the student's settings."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from cluster.base.errors import UserError
from cluster.config import Settings
from distill.config import StudentSettings
from distill.study.config import StudyConfig, without_effect

SHIPPED = Path(__file__).with_name("arms.toml")
Role = Literal["baseline", "rival", "candidate", "ablation", "shuffled", "control"]
Weight = Literal["alignment_weight", "soft_label_weight", "margin_mse_weight"]


class StudyRow(Settings):
    """One row: what it changes of a student trained on labels only, and which weights its tuning sets."""

    name: str
    title: str
    role: Role
    tunes: tuple[Weight, ...] | None = None
    changes: dict[str, Any] = Field(default_factory=dict)
    each_perspective: bool = False
    of_best: bool = False
    needs_unlabelled: bool = False


def load_rows(
    config: StudyConfig, perspectives: Iterable[str], own: Sequence[str] = (), unlabelled: bool = False
) -> tuple[StudyRow, ...]:
    """Return the study's rows in the order of the file. A row for each perspective becomes as many rows.

    Args:
        own: names of the data set's own rows; if empty, the study's rows are taken.
        unlabelled: whether the data set has unlabelled pairs; without them, rows that need such pairs are left out.

    Raises:
        UserError: the file does not describe rows, it lacks one of the names, or a role has too few or too many rows.
    """
    path = Path(config.rows_file) if config.rows_file else SHIPPED
    rows = _read(path)
    names = own or config.rows or tuple(rows)
    if unknown := [name for name in names if name not in rows]:
        raise UserError(f"rows: {unknown[0]!r} is not in {path}, which has {', '.join(rows)}")
    chosen = [row for name, row in rows.items() if name in names and (unlabelled or not row.needs_unlabelled)]
    for role, least, most in (("baseline", 1, 1), ("candidate", 1, len(rows)), ("shuffled", 0, 1)):
        found = sum(row.role == role for row in chosen)
        if not least <= found <= most:
            raise UserError(f"rows: {found} of {', '.join(names)} have the role {role}; give {least} to {most} of them")
    return tuple(one for row in chosen for one in _per_perspective(row, perspectives))


def based_on(row: StudyRow, best: StudyRow) -> StudyRow:
    """Return a row of `of_best` as changes of a student trained on labels only, like all other rows."""
    assert row.of_best and not best.of_best
    tunes = best.tunes if row.tunes is None else row.tunes
    return row.model_copy(update={"changes": _merged(best.changes, row.changes), "tunes": tunes})


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
