"""Refuses rows that a data set or the encoder has no means for, before any run."""

from __future__ import annotations

from cluster.base.errors import UserError
from distill.study.arms import Rows, student_of
from distill.study.config import StudyConfig
from distill.study.data import StudyData
from distill.targets.vector_table import TargetTable


def check_rows(data: StudyData, rows: Rows, config: StudyConfig) -> None:
    """Refuse a row that cannot be made, before hours of other runs.

    Raises:
        UserError: a control needs vectors that stage 8 has not made, or a reader more tokens than the encoder reads.
    """
    if data.run is None:
        return
    for row in rows:
        try:
            if row.reading:
                from distill.study.reader import check_room

                check_room(student_of(row, config.student), row.reading)
            if control := row.changes.get("control"):
                TargetTable(data.run / "8-targets" / "targets.parquet", control)
        except UserError as error:
            raise UserError(f"data.{data.name}, row {row.name}: {error}") from error
