"""Files that are whole or absent, of whatever kind, and the message of a write that failed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cluster.base.errors import UserError

DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "permission denied",
}


def disk_error(error: OSError, path: str | Path) -> UserError:
    """Return the error for a write that failed. What was finished before stays, and a rerun uses it."""
    why = DISK_ERRORS.get(error.errno or 0, str(error))
    return UserError(
        f"cannot write {path}: {why}. Free some space or change the place (--out), and run the same command again."
    )


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a partial name to write to. It becomes `path` if the block ends well, and else it is removed.

    Raises:
        UserError: the disk is full or read-only, or this user may not write to it.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise disk_error(error, path) from error
        raise


@contextmanager
def synced_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to. It becomes `path`, and is safe on the disk, if the block ends well.

    Raises:
        UserError: the disk is full or read-only, or this user may not write to it.
    """
    with whole_file(path) as partial, partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
