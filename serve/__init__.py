"""The student at work. `from serve import Student` ranks products in this process, without Ray or a service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve.scoring.rank import Student

__all__ = ["Student"]


def __getattr__(name: str) -> Any:
    """Load the student when it is asked for: config modules below this package import nothing heavy."""
    if name != "Student":
        raise AttributeError(f"module 'serve' has no attribute {name!r}")
    from serve.scoring.rank import Student

    return Student
