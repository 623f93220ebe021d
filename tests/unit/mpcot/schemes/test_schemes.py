"""Label schemes are data: shipped ones load, wrong ones are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.base.errors import UserError
from mpcot.schemes.scheme import SCHEMES, load_scheme

LABEL = '[[labels]]\ncode = "{}"\nname = "n"\nmeaning = "m"\ngain = 1.0\nrelevant = {}\n'


def write(folder: Path, *labels: tuple[str, str]) -> str:
    path = folder / "own.toml"
    path.write_text('name = "own"\n' + "".join(LABEL.format(code, relevant) for code, relevant in labels))
    return str(path)


@pytest.mark.parametrize("name", sorted(path.stem for path in SCHEMES.glob("*.toml")))
def test_shipped_schemes_are_in_order_of_gain(name: str) -> None:
    scheme = load_scheme(name)
    assert scheme.name == name
    assert list(scheme.gains) == sorted(scheme.gains, reverse=True)
    assert [scheme.index(code) for code in scheme.codes] == list(range(len(scheme.codes)))
    relevant = [label.relevant for label in scheme.labels]
    assert relevant == sorted(relevant, reverse=True)


def test_ones_own_scheme_is_a_file(tmp_path: Path) -> None:
    assert load_scheme(write(tmp_path, ("good", "true"), ("bad", "false"))).codes == ("good", "bad")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([("a", "true")], "two or more"),
        ([("a", "true"), ("a", "false")], "different codes"),
        ([("a", "true"), ("b", "true")], "at least one label relevant and one not"),
        ([("good buy", "true"), ("poor buy", "false")], "code 'good buy' must be one word"),
        ([("-", "true"), ("b", "false")], "code '-' must be one word, and not a dash"),
        ([("a", "perhaps"), ("b", "false")], "does not describe a label scheme"),
    ],
)
def test_a_wrong_scheme(tmp_path: Path, labels: list[tuple[str, str]], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_scheme(write(tmp_path, *labels))


@pytest.mark.parametrize("gain", ["-1.0", "0.0"])
def test_gains_that_no_ranking_has(tmp_path: Path, gain: str) -> None:
    path = Path(write(tmp_path, ("a", "true"), ("b", "false")))
    path.write_text(path.read_text().replace("gain = 1.0", f"gain = {gain}"))
    with pytest.raises(UserError, match="gains must be 0 or more, one of them above 0"):
        load_scheme(str(path))


def test_no_such_scheme_and_no_such_label(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'stars' is neither one of binary, esci, graded"):
        load_scheme("stars")
    with pytest.raises(UserError, match=r"\.toml file that exists"):
        load_scheme(str(tmp_path / "none.toml"))
    with pytest.raises(UserError, match="'X' is not in scheme 'esci', which has E, S, C, I"):
        load_scheme("esci").index("X")
