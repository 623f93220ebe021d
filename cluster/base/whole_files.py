"""Files that are whole or absent, whatever kind they are; and what a failed write says."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.base.errors import UserError

DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "permission denied",
}


def disk_error(error: OSError, path: str | Path) -> UserError:
    """Return the message for a failed write; what was finished before stays and is used by a rerun."""
    why = DISK_ERRORS.get(error.errno or 0, str(error))
    return UserError(f"cannot write {path}: {why}. Free or change the place (--out) and run the same command again.")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a partial name to write to; it becomes `path` when the block ends well, else it is removed.

    Raises:
        UserError: the disk is full, read-only or closed to this user.
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
