"""Imports go one way: workflows -> serve -> distill, teacher -> mpcot -> cluster."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ALLOWED = {
    "cluster": set(),
    "mpcot": {"cluster"},
    "teacher": {"mpcot", "cluster"},
    "distill": {"mpcot", "cluster"},
    "serve": {"distill", "mpcot", "cluster"},
    "workflows": {"serve", "distill", "teacher", "mpcot", "cluster"},
}


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the top-level name of every import in a file, in functions too, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield (node.module or "").partition(".")[0], node.lineno


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_those_below_it(package: str) -> None:
    assert files(package)
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files(package)
        for name, line in imported(path)
        if name in ALLOWED and name not in ALLOWED[package] | {package}
    ]
    assert upward == []


def test_no_package_imports_the_tests() -> None:
    for package in ALLOWED:
        for path in files(package):
            assert "tests" not in {name for name, _ in imported(path)}, path


def test_every_folder_of_code_is_in_the_rule() -> None:
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert found == set(ALLOWED)
