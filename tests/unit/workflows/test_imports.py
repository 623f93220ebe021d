"""Imports go one way: workflows -> serve -> distill, teacher -> mpcot -> cluster."""

from __future__ import annotations

import ast
import gc
import graphlib
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


@pytest.fixture(autouse=True)
def no_finalizers() -> Iterator[None]:
    """What other tests left is collected first: Python 3.11 fails to parse if a finalizer runs in the meantime."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


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


def modules() -> dict[str, Path]:
    """Return every module of the packages by its dotted name."""
    found = {}
    for package in ALLOWED:
        for path in files(package):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def test_no_modules_import_one_another_in_a_circle() -> None:
    """Imports inside of functions count too: what needs them in a circle has no place of its own yet."""
    paths = modules()
    needs: dict[str, set[str]] = {}
    for name, path in paths.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        needs[name] = (found & set(paths)) - {name}
    assert len(needs) > 100 and "mpcot.asking.plan" in needs["mpcot.asking.worker"]
    with_init = {name for name, path in paths.items() if path.name == "__init__.py" and not path.read_text().strip()}
    for name in with_init:
        needs.pop(name)
    order = graphlib.TopologicalSorter({name: found - with_init for name, found in needs.items()})
    order.prepare()  # raises CycleError with the modules of the circle
