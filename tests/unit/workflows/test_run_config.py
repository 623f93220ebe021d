"""The run's config: every wrong setting is named, every shipped file loads, nothing heavy is imported."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cluster.base.errors import UsageError
from distill.study.arms import load_rows, primary_rows
from distill.study.study import primary_of
from mpcot.config import ScriptedEngine, VllmEngine
from teacher.config import Full
from workflows import config as config_module
from workflows.config import load_config, load_study, service_config, validate

CONFIGS = Path(config_module.__file__).parent / "configs"
STUDIES = sorted(CONFIGS.glob("study*.toml"))
SHIPPED = sorted(set(CONFIGS.glob("*.toml")) - set(STUDIES))
LEAST = {"name": "run", "source": {"kind": "catalogue"}, "teacher": {"model": "m"}}
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads(path: Path) -> None:
    loaded = load_config(path)
    assert loaded.name == path.stem
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    assert written["teacher"]["model"] == loaded.teacher.model
    # What is saved beside the results says the same when it is read back.
    assert validate(loaded.model_dump(mode="json"), "config.json") == loaded


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_loads_with_its_rows_and_its_primary_test(path: Path) -> None:
    study = load_study(path)
    assert study.name == path.stem
    for data in study.data:
        rows = load_rows(study, ("intent", "rules"), data.rows, unlabelled=True)
        assert {row.name for row in rows} >= {*(data.rows or study.rows)}
        assert bool(primary_rows(rows, primary_of(data, study))) == (not data.hides)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("tuning.epoch=3", "tuning.epoch: no such setting. Did you mean 'epochs'?"),
        ("student.train.epochs=9", "student.train.epochs: has no effect in a study"),
        ("data=[]", "data: Tuple should have at least 1 item"),
    ],
)
def test_a_wrong_setting_of_a_study_is_named(change: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_study(CONFIGS / "study.toml", [change])
    assert says in str(caught.value)


def test_a_config_is_shipped() -> None:
    assert "demo" in {path.stem for path in SHIPPED}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"colour": 1}, "colour: no such setting"),
        ({"sft": {"train": {"epoch": 3}}}, "sft.train.epoch: no such setting. Did you mean 'epochs'?"),
        ({"samples": {"temprature": 1}}, "samples.temprature: no such setting. Did you mean 'temperature'?"),
        ({"teachr": {}}, "teachr: no such setting. Did you mean 'teacher'?"),
        (
            {"engine": {"kind": "vllm", "max_num_seq": 3}},
            "engine.max_num_seq: no such setting. Did you mean 'max_num_seqs'?",
        ),
        (
            {"engine": {"kind": "scripted", "replicas": {"cpu": 3}}},
            "engine.replicas.cpu: no such setting. Did you mean 'cpus'?",
        ),
        (
            {"source": {"kind": "table", "path": "a.csv", "colums": {}}},
            "source.colums: no such setting. Did you mean 'columns'?",
        ),
        ({"source": {"kind": "esci"}}, "source.path: Field required"),
        ({"source": {"kind": "shop"}}, "source: Input tag 'shop'"),
        ({"sft": {"use_unlabelled": True}}, "sft.use_unlabelled has no effect: add 'unlabelled' to rationales.splits"),
        ({"sft": {"use_unlabelled": True, "origins": ["seed"]}}, "sft.use_unlabelled has no effect. Add 'teacher'"),
        ({"sft": {"tuning": {"kind": "lora", "rnk": 4}}}, "sft.tuning.rnk: no such setting. Did you mean 'rank'?"),
        ({"sft": {"train": {"epochs": "many"}}}, "sft.train.epochs: Input should be a valid integer"),
        ({"sft": {"train": {"epochs": 0}}}, "sft.train.epochs: Input should be greater than 0 (given: 0)"),
        ({"sft": {"tuning": {"rank": 4}}}, "sft.tuning: choose one by kind = 'lora' or 'full'"),
        ({"rationales": {"filters": [{"min_words": 3}]}}, "rationales.filters.0: choose one by kind = 'verdict' or"),
        (
            {"rationales": {"filters": ["form", {"kind": "length", "min_word": 3}]}},
            "rationales.filters.1.min_word: no such setting. Did you mean 'min_words'?",
        ),
        ({"name": ".."}, "name: String should match pattern"),
        ({"engine": {"replicas": {"max": 2}}}, "engine: choose one by kind = 'vllm' or 'scripted'"),
        ({"judge": {"samples": 5}}, "samples 5 at temperature 0 are all the same"),
        ({"samples": {"min_chars": 500}}, "min_chars 500 is above max_chars 400"),
        ({"rationales": {"max_tokens": 4096}}, "rationales.max_tokens 4096 leaves no room for a prompt"),
        ({"judge": {"few_shot": 2}}, "judge.few_shot is 2, but the teacher learns with samples.few_shot 0"),
        ({"samples": {"description_chars": 9}}, "judge.description_chars is 500"),
        ({"samples": {"guide": "short"}}, "judge.guide is full, but the teacher learns with samples.guide short"),
        ({"judge": {"max_chars": 200}}, "judge asks for 9 to 28 words, but the teacher learns to write 19 to 57"),
        ({"judge": {"words": [9, 3]}}, "words 9 to 3: write the fewest first"),
        ({"samples": {"splits": ["dev"]}}, "samples.splits: must contain train"),
        ({"perspectives": {"names": ["intent", "intent"]}}, "one or more different names"),
        ({"split": {"train": 0.9}}, "train + dev + test must be 1"),
        ({"student": {"control": "permuted"}}, "student.control 'permuted' needs vectors of its own: add it to"),
        ({"targets": {"dimensions": 8}}, "targets.dimensions has no effect without targets.transform = 'residual'"),
        ({"name": "a/b"}, "name: String should match pattern"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        validate(LEAST | changes, "own.toml")
    assert str(caught.value).startswith("own.toml:\n") and says in str(caught.value)


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        validate(LEAST | {"colour": 1, "seed": "x", "split": {"trian": 1}}, "own.toml")
    assert len(str(caught.value).splitlines()) == 4


@pytest.fixture
def least(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text('[source]\nkind = "catalogue"\n[teacher]\nmodel = "m"\n')
    return path


def test_a_config_without_a_name_is_called_after_its_file(least: Path) -> None:
    assert load_config(least).name == "own"


def test_set_takes_numbers_words_lists_tables_and_new_sections(least: Path) -> None:
    changes = [
        "seed=4",
        "sft.train.learning_rate=1e-3",
        "teacher.model=Qwen/Qwen3-14B",
        'name="quoted"',
        "perspectives.names=['rules', 'intent']",
        "engine.kind=scripted",
        "engine.replicas={ max = 3, cpus = 2 }",
        "sft.tuning.kind=full",
        "student.baseline=false",
        "cluster.address=auto",
    ]
    loaded = load_config(least, changes)
    assert (loaded.seed, loaded.sft.train.learning_rate, loaded.teacher.model) == (4, 1e-3, "Qwen/Qwen3-14B")
    assert (loaded.name, loaded.perspectives.names) == ("quoted", ("rules", "intent"))
    assert isinstance(loaded.engine, ScriptedEngine) and loaded.engine.replicas.max == 3
    assert loaded.sft.tuning == Full() and loaded.student.baseline is False and loaded.cluster.address == "auto"
    assert isinstance(load_config(least).engine, VllmEngine)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("seed", "write it as section.setting=value"),
        ("=4", "write it as section.setting=value"),
        ("teacher.model.size=4", "'model' is a value, not a section"),
        ("sft.train.epoch=4", "Did you mean 'epochs'"),
        ("seed=four", "seed: Input should be a valid integer"),
    ],
)
def test_a_wrong_set_says_how_to_write_it(least: Path, change: str, says: str) -> None:
    with pytest.raises(UsageError, match=says.replace("(", r"\(")):
        load_config(least, [change])


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config file .*nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    for content in (b"name = ", b"\xff\xfe"):
        broken.write_bytes(content)
        with pytest.raises(UsageError, match="is not TOML"):
            load_config(broken)


def test_a_service_takes_a_config_or_only_changes(least: Path) -> None:
    service = service_config(None, ["serve.port=8123", "cluster.num_cpus=3"])
    assert service.serve.port == 8123 and service.cluster.num_cpus == 3
    assert service_config(least, ["serve.port=8124"]).serve.port == 8124
    with pytest.raises(UsageError, match=r"serve\.prt: no such setting. Did you mean 'port'"):
        service_config(None, ["serve.prt=1"])
    with pytest.raises(UsageError, match=r"serve:\n.*sft: no such setting"):
        service_config(None, ["sft.max_rows=1"])


def test_a_service_takes_a_file_of_its_own_sections(tmp_path: Path) -> None:
    own = tmp_path / "service.toml"
    own.write_text("[serve]\nport = 8125\n[serve.limits]\nproducts_per_request = 7\n")
    service = service_config(own, ["cluster.num_cpus=3"])
    assert (service.serve.port, service.serve.limits.products_per_request, service.cluster.num_cpus) == (8125, 7, 3)
    own.write_text("[serve]\nprt = 8125\n")
    with pytest.raises(UsageError, match=r"service\.toml:\n.*serve\.prt: no such setting"):
        service_config(own)


def test_settings_are_frozen(least: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(least).seed = 9  # type: ignore[misc]


@pytest.mark.parametrize("module", ["workflows.config", "workflows.stages", "workflows.cli"])
def test_reading_a_config_imports_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'deepspeed', 'peft', 'sklearn', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
