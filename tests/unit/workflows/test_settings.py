"""Every setting is listed with the default in force and what it means; the schema takes the shipped configs."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cluster.config import Settings
from distill.study.config import StudyConfig
from tests.helpers.command import broadfast, text
from workflows.config import RunConfig
from workflows.list_settings import REQUIRED, Section, Setting, file_schema, sections

CONFIGS = Path(__file__).parents[3] / "workflows" / "configs"


def model_of(config: Path) -> type[Settings]:
    return StudyConfig if config.name.startswith("study") else RunConfig


def find(name: str, kind: str = "") -> Section:
    (found,) = (one for one in sections(RunConfig) if (one.name, one.kind) == (name, kind))
    return found


def setting(section: Section, name: str) -> Setting:
    (found,) = (one for one in section.settings if one.name == name)
    return found


@pytest.mark.parametrize("model", [RunConfig, StudyConfig])
def test_every_setting_says_what_it_is(model: type[Settings]) -> None:
    found = sections(model)
    assert not [f"{one.name}.{leaf.name}" for one in found for leaf in one.settings if not leaf.about]
    assert not [one.name for one in found if not one.about]


def test_a_default_is_that_of_the_section_which_has_it() -> None:
    assert setting(find("sft.train"), "learning_rate").default == "5e-05"
    assert setting(find("dpo.train"), "learning_rate").default == "5e-06"
    assert setting(find("sft.tuning", "lora"), "rank").default == "16"
    assert setting(find("samples"), "filters").default == '["repetition", "verdict", "form", "length", "grounded"]'
    assert setting(find("source", "esci"), "path").default == REQUIRED
    assert setting(find("cluster"), "address").default == "empty"


def test_what_a_setting_takes_is_said_in_words() -> None:
    assert setting(find("student"), "dropout").allowed == "number >= 0 and < 1"
    assert setting(find("student"), "alignment").allowed == "mse, cosine, infonce"
    assert setting(find("cluster"), "num_cpus").allowed == "whole number > 0 or empty"
    assert setting(find("samples"), "splits").allowed == "list of: train, dev, test, unlabelled"
    assert find("samples.filters", "form").title == '[[samples.filters]]  kind = "form"'


def test_no_section_comes_twice() -> None:
    titles = [one.title for one in sections(RunConfig)]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_all_that_a_shipped_config_sets_is_listed(config: Path) -> None:
    listed: dict[str, set[str]] = {}
    for one in sections(model_of(config)):
        listed.setdefault(one.name, set()).update(leaf.name for leaf in one.settings)

    def check(table: dict[str, Any], name: str) -> None:
        for key, value in table.items():
            below = f"{name}.{key}" if name else key
            if below in listed:
                for one in value if isinstance(value, list) else [value]:
                    check(one if isinstance(one, dict) else {}, below)
            elif key != "kind":
                assert key in listed[name], below

    check(tomllib.loads(config.read_text(encoding="utf-8")), "")


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_schema_takes_the_shipped_configs_and_filters_by_name(config: Path) -> None:
    said = broadfast("settings", "--schema", *(["--study"] if model_of(config) is StudyConfig else []))
    schema, data = json.loads(said.output), tomllib.loads(config.read_text(encoding="utf-8"))
    jsonschema.validate(data, schema)
    if "rationales" in data:
        jsonschema.validate(data | {"rationales": {"filters": ["form", {"kind": "length", "min_words": 8}]}}, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(data | {"rationales": {"filters": ["shape"]}}, schema)


def test_the_command_shows_a_section_and_those_below_it() -> None:
    said = text(broadfast("settings", "student.train"))
    assert "[student.train]" in said and "[student.train.workers]" in said and "[student]" not in said
    assert "epochs" in said and "[sft.train]" in text(broadfast("settings"))
    assert "alignment_weight" in text(broadfast("settings", "tuning", "--study"))


def test_a_misspelt_section_names_the_nearest() -> None:
    said = broadfast("settings", "studnt")
    assert said.exit_code == 2 and "Did you mean student?" in text(said)


def test_a_single_setting_can_be_asked_for() -> None:
    said = text(broadfast("settings", "student.dropout"))
    assert "before the classifier" in said and "max_tokens" not in said
    assert "our column" in text(broadfast("settings", "source.columns"))


def test_a_file_may_leave_its_name_out_but_not_a_kind() -> None:
    schema = file_schema(RunConfig)
    least = {"source": {"kind": "catalogue"}, "teacher": {"model": "m"}}
    jsonschema.validate(least, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(least | {"sft": {"tuning": {"rank": 8}}}, schema)
    assert setting(find(""), "name").default == "the file's name"
