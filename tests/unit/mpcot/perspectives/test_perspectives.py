"""Perspectives as files: those that are shipped, and your own."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.base.errors import UserError
from mpcot.asking.parsing import parse_answer
from mpcot.asking.prompts import answer
from mpcot.config import PerspectiveSettings
from mpcot.perspectives.perspective import SHIPPED, Perspective, load_perspectives
from mpcot.schemes.scheme import SCHEMES, load_scheme

NAMES = sorted(path.stem for path in SCHEMES.glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_perspective_has_examples_of_every_label_of_every_shipped_scheme(name: str) -> None:
    scheme = load_scheme(name)
    assert scheme.order and scheme.silent and all(label.guide for label in scheme.labels)
    for path in sorted(SHIPPED.glob("*.toml")):
        (perspective,) = load_perspectives(PerspectiveSettings(names=(path.stem,)))
        assert {example.verdicts[name] for example in perspective.examples} == set(scheme.codes)
        for example in perspective.examples:
            said = answer(example.rationale, example.verdicts[name])
            assert parse_answer(said, scheme).reason is None and "\n" not in example.rationale


@pytest.mark.parametrize(
    ("text", "names", "says"),
    [
        (None, ("rules",), "rules_file: cannot read"),
        ("# nothing\n", ("rules",), "has no rules. Write one per line"),
        ("A rule.", ("intent",), "has no effect: none of intent goes by rules"),
    ],
)
def test_rules_that_cannot_be_used(tmp_path: Path, text: str | None, names: tuple[str, ...], says: str) -> None:
    path = tmp_path / "rules.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=says):
        load_perspectives(PerspectiveSettings(names=names, rules_file=str(path)))


def write_perspective(folder: Path, name: str, called: str | None = None, body: str = "") -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.toml").write_text(f'name = "{called or name}"\nquestion = "Why?"\n{body}')


def test_ones_own_perspective_is_a_file(tmp_path: Path) -> None:
    write_perspective(tmp_path / "own", "season")
    write_perspective(tmp_path / "own", "intent")
    settings = PerspectiveSettings(names=("rules", "season", "intent"), folder=str(tmp_path / "own"))
    loaded = load_perspectives(settings)
    assert [p.name for p in loaded] == ["rules", "season", "intent"]
    assert loaded[2] == Perspective(name="intent", question="Why?")


@pytest.mark.parametrize(
    ("name", "called", "body", "says"),
    [
        ("season", "winter", "", "has the name 'winter'. Name it as the file, 'season'"),
        ("season", None, "colour = 1", "colour"),
        ("season", None, "[[examples]]\nquery = 1", "does not describe a perspective"),
        ("season", None, "broken =", "does not describe a perspective"),
    ],
)
def test_a_file_that_is_no_perspective(tmp_path: Path, name: str, called: str | None, body: str, says: str) -> None:
    write_perspective(tmp_path, name, called, body)
    with pytest.raises(UserError, match=says):
        load_perspectives(PerspectiveSettings(names=(name,), folder=str(tmp_path)))


def test_a_perspective_without_a_file_names_those_there_are(tmp_path: Path) -> None:
    write_perspective(tmp_path, "season")
    with pytest.raises(UserError, match=r"there is no file wether\.toml, only attributes, intent, rules, season"):
        load_perspectives(PerspectiveSettings(names=("wether",), folder=str(tmp_path)))
