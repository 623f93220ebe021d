"""Errors that a user can act on."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can put right: the message names the field, the value and the way out.

    The command line prints it without a traceback and exits with 1.
    """


class UsageError(UserError):
    """The command or the config is worded wrongly; the command line exits with 2."""
