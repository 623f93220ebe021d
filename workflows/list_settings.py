"""What `broadfast settings` prints: every setting with its default, its bounds and its meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cluster.base.errors import UsageError
from cluster.config import Settings

REQUIRED, FILE_NAME = "needed", "the file's name"
NODE = dict[str, Any]
BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false", "null": "empty"}


@dataclass(frozen=True)
class Setting:
    """One setting of a section; `default` and `allowed` are texts for a reader."""

    name: str
    default: str
    allowed: str
    about: str


@dataclass(frozen=True)
class Section:
    """A section of the TOML file. At the top `name` is empty; `kind` says to which choice of a section it belongs."""

    name: str
    kind: str
    repeated: bool
    about: str
    settings: tuple[Setting, ...]

    @property
    def title(self) -> str:
        """The header of the section in a TOML file."""
        header = (f"[[{self.name}]]" if self.repeated else f"[{self.name}]") if self.name else "at the top"
        return header + (f'  kind = "{self.kind}"' if self.kind else "")


def file_schema(model: type[Settings]) -> NODE:
    """Return the JSON schema of a file for this model, which may leave out its name but not the kind of a section."""
    schema = model.model_json_schema()
    schema["required"] = [name for name in schema.get("required", ()) if name != "name"]
    schema["properties"]["name"].pop("default", None)
    for node in schema.get("$defs", {}).values():
        if _kind(node):
            node["required"] = ["kind", *node.get("required", ())]
    return schema


def sections(model: type[Settings]) -> list[Section]:
    """Return all sections that a file for this model may have, from its JSON schema."""
    schema = file_schema(model)
    schema["properties"]["name"]["default"] = FILE_NAME
    # A section that is the same for several kinds of its owner is listed once; dicts keep the order.
    return list(dict.fromkeys(_walk(schema, schema.get("$defs", {}), "", False, {})))


def _walk(node: NODE, defs: dict[str, NODE], name: str, repeated: bool, given: dict[str, Any]) -> Iterator[Section]:
    """Yield the section of `node` and those below it; `given` are the defaults that its owner sets for it."""
    leaves: list[Setting] = []
    below: list[Section] = []
    for key, field in node.get("properties", {}).items():
        default = given.get(key, field.get("default", REQUIRED if key in node.get("required", ()) else None))
        choices, many = _sections_of(field, defs), field.get("type") == "array"
        for child in choices:
            own = default if isinstance(default, dict) and _kind(child) in ("", default.get("kind")) else {}
            below += _walk(child, defs, f"{name}.{key}" if name else key, many, own)
        if key != "kind" and (many or not choices):
            allowed = "any number of sections" if choices else _allowed(field)
            leaves.append(Setting(key, _value(default), allowed, field.get("description", "")))
    about = str(node.get("description", "")).split("\n\n")[0].replace("\n", " ")
    yield Section(name, _kind(node), repeated, about, tuple(leaves))
    yield from below


def _sections_of(field: NODE, defs: dict[str, NODE]) -> list[NODE]:
    """Return the sections that a field can be: one, several of different kinds, or none."""
    if "$ref" in field:
        found = defs[field["$ref"].rpartition("/")[2]]
        return [found] if "properties" in found else []
    several = field.get("oneOf", field.get("anyOf", [field["items"]] if isinstance(field.get("items"), dict) else []))
    return [section for one in several for section in _sections_of(one, defs)]


def _kind(node: NODE) -> str:
    return str(node.get("properties", {}).get("kind", {}).get("const", ""))


def _value(default: Any) -> str:
    """Return a default as it is written in TOML."""
    if default is None:
        return "empty"
    if isinstance(default, list):
        default = [one.get("kind", one) if isinstance(one, dict) else one for one in default]
    return default if default in (REQUIRED, FILE_NAME) else json.dumps(default, ensure_ascii=False)


def _allowed(field: NODE) -> str:
    """Return in words which values a field allows."""
    if "enum" in field or "const" in field:
        return ", ".join(map(str, field.get("enum", [field.get("const")])))
    if "anyOf" in field:
        return " or ".join(_allowed(one) for one in field["anyOf"])
    if field.get("type") == "array":
        return f"list of: {_allowed(field.get('items', {}))}"
    if field.get("type") == "object":
        inside = field.get("additionalProperties")
        return f"table of: {_allowed(inside if isinstance(inside, dict) else {})}"
    bounds = " and ".join(f"{sign} {field[name]:g}" for name, sign in BOUNDS.items() if name in field)
    pattern = f"like {field['pattern']}" if "pattern" in field else ""
    return " ".join(word for word in (TYPES.get(field.get("type", ""), "any"), bounds, pattern) if word)


def _alone(section: Section, wanted: str) -> Section | None:
    """Return the section with only the setting that is wanted, or None where it has no such setting."""
    owner, _, name = wanted.rpartition(".")
    own = tuple(one for one in section.settings if one.name == name)
    return replace(section, settings=own) if section.name == owner and own else None


def print_settings(model: type[Settings], wanted: str | None, out: Console) -> None:
    """Print the sections of a file, or the settings of the wanted section and of those below it, or one setting.

    Raises:
        UsageError: there is no such section or setting; the message names the nearest one.
    """
    found = sections(model)
    if wanted is None:
        table = Table("section", Column("settings", justify="right"), "what")
        for section in found:
            table.add_row(escape(section.title), str(len(section.settings)), section.about)
        out.print(table)
        return
    chosen = [section for section in found if f"{section.name}.".startswith(f"{wanted}.")]
    chosen = chosen or [own for section in found if (own := _alone(section, wanted))]
    if not chosen:
        near = get_close_matches(wanted, {section.name for section in found}, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"no section or setting {wanted}.{hint} `broadfast settings` lists them all.")
    for section in chosen:
        out.print(f"\n[bold]{escape(section.title)}[/bold]  {escape(section.about)}", highlight=False)
        if section.settings:
            columns = (Column(name, overflow="fold") for name in ("default", "takes", "what"))
            table = Table(Column("setting", no_wrap=True), *columns)
            for one in section.settings:
                table.add_row(*map(escape, (one.name, one.default, one.allowed, one.about)))
            out.print(table)
