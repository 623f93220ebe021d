"""What the README, those of the folders and CONTRIBUTING say is true: tree, commands, settings, examples and links."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from itertools import pairwise
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
from tests.helpers.command import broadfast
from tests.helpers.echo_service import Echo
from tests.helpers.report_run import write_export
from workflows.cli import app
from workflows.config import RunConfig, bulk_config, load_config, load_study, service_config, validate
from workflows.stages import STAGES, find_stage

ROOT = Path(__file__).parents[3]
PACKAGES = ("workflows", "mpcot", "teacher", "distill", "serve", "cluster")
PAGES = ["README.md", *(f"{folder}/README.md" for folder in (*PACKAGES, "benchmarks"))]
MORE_PAGES = ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/STUDY.md", "serve/RECIPES.md"]
README = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
CODE_SUFFIXES = {".py", ".toml", ".css", ".j2", ".html", ".js", ".yaml", ".Dockerfile"}
MOST_BYTES, MOST_LINES, MOST_PICTURE_BYTES = 12_288, 220, 400_000
LEAST = {"name": "run", "source": {"kind": "catalogue"}, "teacher": {"model": "m"}}
IN_A_JOB = "python -m workflows.cli "
MINE = "myshop.toml"
FILE = re.compile(r"\.(toml|py|html|json|jsonl|yaml)$")


def fences(text: str = README) -> list[tuple[str, str]]:
    """Return the language and the text of every fenced block, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for found, text in fences() if found == language]


def tree() -> Iterator[str]:
    """Yield every folder of the tree in CONTRIBUTING.md, each with a slash at its end."""
    (text,) = (
        text
        for _, text in fences((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
        if text.startswith("workflows/")
    )
    folders: list[str] = []
    for line in text.splitlines():
        name, _, about = line.strip().partition(" ")
        assert about.strip() and name.endswith("/"), f"{name} has no phrase, or is no folder"
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name]
        yield "".join(folders)


def folders_of_code() -> set[str]:
    """Return every folder that holds code, those of unit tests apart: they mirror the source."""
    paths = [path for package in (*PACKAGES, "benchmarks") for path in (ROOT / package).rglob("*")]
    found = {path.parent.relative_to(ROOT) for path in paths if path.suffix in CODE_SUFFIXES}
    tested = {Path("tests") / path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").glob("*/**/*.py")}
    return {f"{path}/" for path in found | tested}


def command_lines() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if re.match(r"(broadfast|make|ray) ", line)]


def broadfast_lines() -> list[str]:
    """Return the arguments of every call of the command, in blocks and in running text, where a name may be alone."""
    written = [*command_lines(), *re.findall(r"`(broadfast [^` ]+ [^`]+)`", README)]
    called = [line.partition(" ")[2] for line in written if line.startswith("broadfast ")]
    return called + [line.partition(IN_A_JOB)[2] for line in written if IN_A_JOB in line]


def parse(arguments: str) -> tuple[str, dict[str, Any]]:
    """Parse a call without running it; a command, option or argument that does not exist raises."""
    command: Any = typer.main.get_command(app)
    words = shlex.split(arguments)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    return command.name, command.make_context(command.name, words).params


def test_the_tree_names_only_folders_that_exist() -> None:
    named = list(tree())
    assert len(named) == len(set(named))
    assert [path for path in named if not (ROOT / path).is_dir()] == []


def test_the_tree_names_every_folder_of_code() -> None:
    found = folders_of_code()
    assert len(found) > 30 and found - set(tree()) == set()


def test_the_readme_stays_short() -> None:
    text = (ROOT / "README.md").read_bytes()
    assert len(text) <= MOST_BYTES and len(text.splitlines()) <= MOST_LINES


def test_the_pictures_are_there_and_small() -> None:
    named = re.findall(r'<img src="([^"]+)"', README)
    assert named and [name for name in named if not (ROOT / name).is_file()] == []
    assert sum(path.stat().st_size for path in (ROOT / "workflows/pictures").iterdir()) <= MOST_PICTURE_BYTES


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The config that the README tells to write: `esci.toml` with the sections shown there in place of its own."""
    text = next(text for language, text in fences() if language == "toml" and 'name = "myshop"' in text)
    base = tomllib.loads((ROOT / "workflows/configs/esci.toml").read_text(encoding="utf-8"))
    path = tmp_path / MINE
    path.write_text(to_toml(base | tomllib.loads(text)), encoding="utf-8")
    return path


def to_toml(data: Mapping[str, Any]) -> str:
    """Write plain data as TOML with inline tables, which is JSON but for the signs between keys and values."""
    return "".join(f"{name} = {inline(value)}\n" for name, value in data.items())


def inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {inline(one)}" for name, one in value.items()) + "}"
    return json.dumps(value)


@pytest.mark.parametrize("arguments", broadfast_lines())
def test_a_command_line_parses(arguments: str, mine: Path) -> None:
    name, given = parse(arguments)
    changes = given.get("changes") or ()
    if str(given.get("config")) == MINE:
        given["config"] = mine
    if name == "serve":
        service_config(given["config"] and ROOT / given["config"], changes)
    elif name == "score":
        bulk_config(given["config"] and ROOT / given["config"], given["table"], changes)
    elif name == "study":
        load_study(ROOT / given["config"], changes)
    elif "config" in given:
        load_config(ROOT / given["config"], changes)
    for stage in (given.get("first"), given.get("last")):
        assert stage is None or find_stage(stage)


def test_every_command_that_is_named_exists() -> None:
    command: Any = typer.main.get_command(app)
    named = set(re.findall(r"`broadfast ([a-z]+)", README))
    assert {"run", "study", "plan"} <= named <= set(command.commands)


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
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert {"demo", "test"} <= named <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


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
    return sorted({w for w in words if w.partition(".")[0] in RunConfig.model_fields and not FILE.search(w)})


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


def calls() -> Iterator[tuple[str, str, str | None]]:
    """Yield path and body of each request that is shown, and the answer if one follows it."""
    found = fences()
    for (_, call), (language, answer) in pairwise([*found, ("", "")]):
        if call.startswith("curl "):
            words = shlex.split(call)
            path = words[2].removeprefix("http://127.0.0.1:8000")
            yield path, words[words.index("-d") + 1], answer if language == "json" else None


def test_the_requests_and_their_answers_are_those_of_the_service() -> None:
    limits, asked = LimitSettings(), list(calls())
    assert {path for path, _, answer in asked if answer} == {"/v1/score", "/v1/rerank"}
    assert len(blocks("json")) == len([answer for _, _, answer in asked if answer])
    for path, body, answer in asked:
        if path == "/v1/score":
            check_score(request_types(limits)[0].model_validate_json(body), json.loads(answer or "null"))
        else:
            check_rerank(rerank_type(limits).model_validate_json(body), answer and json.loads(answer))


def check_score(request: Any, scored: Any) -> None:
    assert ScoreResponse.model_validate(scored).model_dump() == scored
    assert [product.id for product in request.products] == [result["id"] for result in scored["results"]]
    assert request.explain == all(result["explanations"] for result in scored["results"])


def check_rerank(request: Any, ranked: Any) -> None:
    if ranked is None:
        return
    assert RerankResponse.model_validate(ranked).model_dump(exclude_none=True) == ranked
    assert len(ranked["results"]) == request.top_n
    assert {result["index"] for result in ranked["results"]} <= set(range(len(request.documents)))


def test_the_python_example_scores_with_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = blocks("python")
    write_export(tmp_path / "runs/demo/10-export", tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    printed = sorted(line for line in capsys.readouterr().out.splitlines() if "real_accelerator" not in line)
    assert [line[:11] for line in printed] == ["Echo Screen", "Maple Orbit"]
    assert all(line.count("'intent': '") == 1 for line in printed)


def test_the_excerpt_of_the_plan_is_what_the_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    (excerpt,) = (text for language, text in fences() if language == "text" and "4 x 2 GPU" in text)
    printed = broadfast(*shlex.split("plan workflows/configs/gpu.toml --gpu A100-80G")).output.splitlines()
    assert [line for line in excerpt.splitlines() if line not in printed] == []


def test_every_path_that_is_named_is_served() -> None:
    served = make_api(Echo(), ServeSettings()).openapi()["paths"]
    assert set(re.findall(r"(/v1/\w+|/\w+z|/metrics)\b", README)) == set(served)


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_every_page_is_looked_at() -> None:
    assert set(PAGES) == {"README.md", *(f"{path.parent.name}/README.md" for path in ROOT.glob("[a-z]*/README.md"))}


@pytest.mark.parametrize("page", [*PAGES, *MORE_PAGES])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        there = (ROOT / page).parent / name if name else ROOT / page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target
