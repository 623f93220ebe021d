"""Exposures say which arm answered which request; they are kept in parts by the hour (`serve/parts/part_log.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads

from serve.experiments.assign import unit_digest, unit_secret
from serve.experiments.config import Arm, ExperimentSettings
from serve.parts.part_log import PartLog, open_parts

# exposures folder -> `broadfast experiment report`. `share` is the arm's as planned; `scores` are in the order of
# `products`. Rows of shadow arms have the same request id as the row of the arm that answered.
NEEDED = {"experiment": pa.string(), "request_id": pa.string(), "unit": pa.string(), "arm": pa.string()}
NEEDED |= {"model": pa.string(), "share": pa.float64(), "shadow": pa.bool_(), "at": pa.timestamp("us", tz="UTC")}
EXPOSURE = pa.schema(
    [
        *(pa.field(name, kind, nullable=False) for name, kind in NEEDED.items()),
        pa.field("products", pa.list_(pa.string())),
        pa.field("scores", pa.list_(pa.float32())),
    ]
)
EXPOSURES = "exposures"  # what they are called in messages


class ExposureLog(PartLog):
    """The log of an experiment's exposures.

    Args:
        on_lost: is called with the number of exposures whenever some are lost.

    Raises:
        UserError: the folder cannot be made or written, or the secret for units cannot be read.
    """

    def __init__(
        self, folder: Path, experiment: ExperimentSettings, on_lost: Callable[[int], None] | None = None
    ) -> None:
        self.experiment, self.secret = experiment, unit_secret(folder, experiment)  # before there is a thread to end
        super().__init__(folder, EXPOSURE, experiment, EXPOSURES, on_lost)

    def append(
        self,
        request_id: str,
        unit_id: str,
        arm: Arm,
        products: Sequence[str] = (),
        scores: Sequence[float] = (),
        model: str = "",
    ) -> None:
        """Record that `arm` answered a request by `model` or, as a shadow, scored it. This never waits for a disk."""
        row = {
            "experiment": self.experiment.name,
            "request_id": request_id,
            "unit": unit_digest(self.secret, unit_id),
            "arm": arm.name,
            "model": model,
            "share": arm.share,
            "shadow": arm.shadow,
            "at": datetime.now(UTC),
            "products": list(products),
            "scores": list(scores),
        }
        self.extend([row])


def open_exposures(path: Path, since: datetime | None = None) -> pads.Dataset:
    """Return the exposures of a folder or of one file, of which nothing is read yet; it raises as `open_parts` does."""
    return open_parts(path, EXPOSURE, EXPOSURES, since)


def read_exposures(path: Path, columns: Sequence[str] = tuple(EXPOSURE.names)) -> pa.Table:
    """Return the exposures as a table; it raises as `open_exposures` does."""
    return open_exposures(path).to_table(columns=list(columns))
