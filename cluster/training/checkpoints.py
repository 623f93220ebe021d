"""Where a training keeps its checkpoints: beside its results, or on storage such as S3 if the config names it."""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from cluster.base.errors import UserError
from cluster.base.stage_folder import digest
from cluster.base.whole_files import whole_file

NAME = "storage-name"
PROBE = "probe"


def storage_place(uri: str | None, scratch: Path) -> str:
    """Return the path or URI under which this training keeps its checkpoints.

    On shared storage every training has its own folder. Its name is drawn once and kept in `scratch`, and so goes with
    the stage's folder; then a training that starts over never finds the checkpoints of other data.

    Args:
        uri: `train.checkpoints`; None keeps checkpoints in `scratch`.
        scratch: a folder beside the results, which every worker can reach.
    """
    if uri is None:
        return str(scratch.resolve())
    file = scratch / NAME
    if not file.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as partial:
            partial.write_text(f"broadfast-{uuid.uuid4().hex}", encoding="utf-8")
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{file.read_text(encoding='utf-8')}"))


def staging_place(staging: str | None, scratch: Path, rank: int) -> Path:
    """Return the folder in which a worker writes its part of a checkpoint, before Ray copies it to storage.

    It is the same one every time, so a worker that is killed leaves one part behind at most.

    Args:
        staging: `train.staging`; None stages in `scratch`.
        scratch: a folder beside the results, which tells the trainings that stage in one place apart.
    """
    if staging is None:
        return scratch / f"staged-{rank}"
    return Path(staging) / f"broadfast-{digest(str(scratch.resolve()))}" / f"staged-{rank}"


def trainings_with_checkpoints(place: str) -> list[str]:
    """Return the sorted names of the trainings that have left a checkpoint under `place`.

    This first writes to storage that is not a folder of this machine, so that it is known to work before workers start.

    Raises:
        UserError: the storage cannot be reached or written to.
    """
    try:
        filesystem, path = pafs.FileSystem.from_uri(place)
        if not isinstance(filesystem, pafs.LocalFileSystem):
            filesystem.create_dir(path)
            with filesystem.open_output_stream(f"{path}/{PROBE}") as probe:
                probe.write(b"broadfast")
        found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"train.checkpoints: cannot write to {place!r}: {error}. Check the address, the bucket and the credentials"
        ) from error
    inside = (Path(info.path).relative_to(path).parts for info in found)
    return sorted({parts[0] for parts in inside if len(parts) > 1 and parts[1].startswith("checkpoint_")})


def delete_checkpoints(place: str) -> None:
    """Delete everything under `place`. What cannot be deleted stays: a finished training must not fail over it."""
    with suppress(pa.ArrowException, OSError):
        filesystem, path = pafs.FileSystem.from_uri(place)
        filesystem.delete_dir(path)
