"""Errors that a user can act on."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can put right. The message names the field, the value and the way out.

    The command prints it without a traceback and exits with 1.
    """


class UsageError(UserError):
    """The command or the config is written wrongly; the command exits with 2."""
