"""Loads perspectives, the points of view from which a pair is judged. Each is a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from pydantic import ValidationError

from cluster.base.errors import UserError
from cluster.config import Settings
from mpcot.config import PerspectiveSettings

SHIPPED = Path(__file__).parent
JOINT = "joint"  # the name of a perspective that is made of others


class Example(Settings):
    """A worked example for the prompt. `verdicts` has the label in each scheme, by the name of the scheme."""

    query: str
    title: str
    rationale: str
    verdicts: dict[str, str]


class Perspective(Settings):
    """A point of view: the question to the teacher, its short form, rules to go by, and worked examples."""

    name: str
    question: str
    short: str = ""
    rules: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()


def load_perspectives(settings: PerspectiveSettings) -> tuple[Perspective, ...]:
    """Load the perspectives in the order of the config. Files in `perspectives.folder` come before shipped ones.

    Raises:
        UserError: a name without a file, a file that does not describe a perspective, or rules that nobody reads.
    """
    folders = [Path(settings.folder)] if settings.folder else []
    loaded = tuple(_load(name, [*folders, SHIPPED]) for name in settings.names)
    return _with_rules(loaded, settings.rules_file) if settings.rules_file else loaded


def _with_rules(loaded: tuple[Perspective, ...], path: str) -> tuple[Perspective, ...]:
    """Give the rules of a text file to the perspectives that go by rules. These then state them in every prompt."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"perspectives.rules_file: cannot read {path} as text: {error}") from error
    rules = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not rules:
        raise UserError(f"perspectives.rules_file: {path} has no rules. Write one per line")
    if not any(p.rules for p in loaded):
        names = ", ".join(p.name for p in loaded)
        raise UserError(f"perspectives.rules_file has no effect: none of {names} goes by rules. Add rules to the names")
    return tuple(p.model_copy(update={"rules": rules, "short": ""}) if p.rules else p for p in loaded)


def joint(perspectives: Sequence[Perspective]) -> Perspective:
    """Return one perspective whose question names all the given ones. Its examples are theirs, in turns."""
    questions = " ".join(f"{p.name}: {p.question}" for p in perspectives)
    turns = zip_longest(*(p.examples for p in perspectives))
    return Perspective(
        name=JOINT,
        question=f"Judge from one of these points of view. {questions}",
        examples=tuple(example for turn in turns for example in turn if example is not None),
    )


def _load(name: str, folders: list[Path]) -> Perspective:
    for folder in folders:
        path = folder / f"{name}.toml"
        if not path.is_file():
            continue
        try:
            perspective = Perspective(**tomllib.loads(path.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
            raise UserError(f"perspectives: {path} does not describe a perspective: {error}") from error
        if perspective.name != name:
            raise UserError(f"perspectives: {path} has the name {perspective.name!r}. Name it as the file, {name!r}")
        return perspective
    known = sorted(p.stem for folder in folders for p in folder.glob("*.toml"))
    raise UserError(
        f"perspectives.names: there is no file {name}.toml, only {', '.join(known)}. Add it to perspectives.folder."
    )
