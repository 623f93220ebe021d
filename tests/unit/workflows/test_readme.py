"""What the README and those of the folders say is true: tree, commands, settings, examples and links."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from mpcot.perspectives.perspective import Perspective
from mpcot.schemes.scheme import Scheme
from serve.config import LimitSettings, ServeSettings
from serve.http.rerank import RerankResponse, rerank_type
from serve.http.routes import make_api
from serve.http.schemas import ScoreResponse, request_types
from tests.helpers.echo_service import Echo
from workflows.cli import app
from workflows.config import RunConfig, load_config, load_study, service_config, validate
from workflows.stages import STAGES, find_stage

ROOT = Path(__file__).parents[3]
PAGES = ["README.md", "mpcot/README.md", "distill/README.md", "serve/README.md", "benchmarks/README.md"]
README = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
PACKAGES = ("workflows", "mpcot", "teacher", "distill", "serve", "cluster")
SHIPPED_SUFFIXES = {".py", ".toml", ".css", ".j2", ".html", ".js"}
LEAST = {"name": "run", "source": {"kind": "catalogue"}, "teacher": {"model": "m"}}
IN_A_JOB = "python -m workflows.cli "


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def tree() -> Iterator[str]:
    """Yield every path of the tree; folders end in a slash."""
    (text,) = (block for block in blocks("text") if block.startswith("README.md"))
    folders: list[str] = []
    for line in text.splitlines():
        name, _, about = line.strip().partition(" ")
        assert about.strip() or name.endswith("/"), f"{name} has no phrase"
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        yield "".join(folders) + name
        if name.endswith("/"):
            folders.append(name)


def command_lines() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if re.match(r"(broadfast|make|ray) ", line)]


def broadfast_lines() -> list[str]:
    """Return the arguments of every call of the command, in blocks and in running text."""
    written = [*command_lines(), *re.findall(r"`(broadfast [^`]+)`", README)]
    called = [line.partition(" ")[2] for line in written if line.startswith("broadfast ")]
    return called + [line.partition(IN_A_JOB)[2] for line in written if IN_A_JOB in line]


def parse(arguments: str) -> tuple[str, dict[str, Any]]:
    """Parse a call without running it; a command, option or argument that does not exist raises."""
    command: Any = typer.main.get_command(app)
    words = shlex.split(arguments)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    return command.name, command.make_context(command.name, words).params


def test_the_tree_names_only_what_exists() -> None:
    named = list(tree())
    assert len(named) == len(set(named))
    for path in named:
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path


def test_the_tree_names_every_file_of_the_packages() -> None:
    files = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in SHIPPED_SUFFIXES and path.name != "__init__.py"
    }
    assert files and files - set(tree()) == set()


def test_the_tree_names_every_folder_of_tests() -> None:
    folders = {f"tests/{path.relative_to(ROOT / 'tests').parts[0]}/" for path in (ROOT / "tests").rglob("test_*.py")}
    assert folders <= set(tree())


@pytest.mark.parametrize("arguments", broadfast_lines())
def test_a_command_line_parses(arguments: str) -> None:
    name, given = parse(arguments)
    changes = given.get("changes") or ()
    if name == "serve":
        service_config(given["config"] and ROOT / given["config"], changes)
    elif name == "study":
        load_study(ROOT / given["config"], changes)
    elif "config" in given:
        load_config(ROOT / given["config"], changes)
    for stage in (given.get("first"), given.get("last")):
        assert stage is None or find_stage(stage)


def test_a_wrong_command_line_would_be_noticed() -> None:
    with pytest.raises(KeyError):
        parse("fly away")
    with pytest.raises(Exception, match="--speed"):
        parse("run a.toml --speed 9")


def test_command_blocks_hold_nothing_unchecked() -> None:
    lines = [block for block in blocks("bash") if not block.startswith("curl ")]
    assert [line for block in lines for line in block.splitlines()] == command_lines()
    assert broadfast_lines()


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))


@pytest.mark.parametrize("text", blocks("toml"))
def test_a_toml_block_loads_as_what_it_is(text: str) -> None:
    data = tomllib.loads(text)
    if "question" in data:
        assert Perspective(**data).examples
    elif isinstance(data.get("labels"), list):
        assert Scheme(**data).codes
    else:
        validate(LEAST | data, "README.md")


def settings_named() -> list[str]:
    """Return the settings that running text and tables name with their section."""
    words = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?: = [^`]+)?`", README)
    files = {Path(name).name for name in tree()} | {"report.html", "report.json", "config.json", "manifest.json"}
    return sorted({w for w in words if w.partition(".")[0] in RunConfig.model_fields and w not in files})


@pytest.mark.parametrize("name", settings_named())
def test_a_setting_that_is_named_exists(name: str) -> None:
    holders: list[Any] = [RunConfig]
    for part in name.split("."):
        found = [h.model_fields[part].annotation for h in holders if part in getattr(h, "model_fields", {})]
        assert found, f"{name}: no setting {part}"
        holders = [choice for annotation in found for choice in (annotation, *get_args(annotation))]


def test_the_stage_table_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\d+-\w+)` \| ([^|]+) \|", README, re.MULTILINE)
    read = {name: numbers(text) for name, text in rows}
    assert read == {stage.name: [int(name.partition("-")[0]) for name in stage.reads] for stage in STAGES}


def numbers(text: str) -> list[int]:
    """Return the stages of `1, 3` or `1 to 10`; words name no stage."""
    found = [int(n) for n in re.findall(r"\d+", text)]
    return list(range(found[0], found[1] + 1)) if " to " in text else found


def calls() -> dict[str, str]:
    """Return the body of each request that is shown, by its path."""
    words = [shlex.split(block) for block in blocks("bash") if block.startswith("curl ")]
    return {call[2].removeprefix("http://127.0.0.1:8000"): call[call.index("-d") + 1] for call in words}


def test_the_requests_and_their_answers_are_those_of_the_service() -> None:
    limits, asked, (scored, ranked) = LimitSettings(), calls(), map(json.loads, blocks("json"))
    assert set(asked) == {"/v1/score", "/v1/rerank"}
    request = request_types(limits)[0].model_validate_json(asked["/v1/score"])
    assert ScoreResponse.model_validate(scored).model_dump() == scored
    assert [product.id for product in request.products] == [result["id"] for result in scored["results"]]
    wanted = rerank_type(limits).model_validate_json(asked["/v1/rerank"])
    assert RerankResponse.model_validate(ranked).model_dump(exclude_none=True) == ranked
    assert len(ranked["results"]) == wanted.top_n
    assert {result["index"] for result in ranked["results"]} <= set(range(len(wanted.documents)))


def test_every_path_that_is_named_is_served() -> None:
    served = make_api(Echo(), ServeSettings()).openapi()["paths"]
    assert set(re.findall(r"(/v1/\w+|/\w+z|/metrics)\b", README)) == set(served)


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_every_page_is_looked_at() -> None:
    assert set(PAGES) == {"README.md", *(f"{path.parent.name}/README.md" for path in ROOT.glob("[a-z]*/README.md"))}


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/STUDY.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        there = (ROOT / page).parent / name if name else ROOT / page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target
