"""Manifests and images: the pinned Ray, commands and paths that exist, settings that load, resources that suffice."""

from __future__ import annotations

import hashlib
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cluster.gpus.memory import find_gpu
from serve.config import ServeSettings
from serve.on_ray.application import ServiceArguments
from serve.on_ray.running_service import http_options
from workflows.cli import app
from workflows.config import RunConfig, load_config
from workflows.gpu_plan.plan import Fleet, plan_stages
from workflows.runner import select

ROOT = Path(__file__).parents[4]
IMAGE_ROOT = "/opt/broadfast"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RAY = next(re.findall(r"ray\[\w+\]==(.+)", line)[0] for line in PROJECT["dependencies"] if line.startswith("ray"))
MANIFESTS = {path.stem: path for path in (ROOT / "cluster/deployment/kuberay").glob("*.yaml")}
DOCKERFILES = {path.name.partition(".")[0]: path for path in (ROOT / "cluster/deployment/docker").glob("*.Dockerfile")}
JOBS, SERVICES = ("generate", "train"), ("student-cpu", "student-gpu")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load(MANIFESTS[name].read_text(encoding="utf-8"))


def ray_cluster(name: str) -> dict[str, Any]:
    spec = load(name)["spec"]
    return spec["rayClusterSpec" if name in JOBS else "rayClusterConfig"]


def groups(name: str) -> list[dict[str, Any]]:
    return [ray_cluster(name)["headGroupSpec"], *ray_cluster(name)["workerGroupSpecs"]]


def offered(name: str, bound: str) -> dict[str, float]:
    """Return the CPUs and GPUs of all workers at `minReplicas` or `maxReplicas`; the head offers none."""
    found = {"cpu": 0.0, "nvidia.com/gpu": 0.0}
    for group in ray_cluster(name)["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        for kind in found:
            found[kind] += group[bound] * float(container["resources"]["limits"].get(kind, 0))
    return found


def job(name: str) -> tuple[RunConfig, dict[str, Any]]:
    """Return the config of a job's command and its parsed options."""
    words = shlex.split(load(name)["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "workflows.cli", "run"]
    command: Any = typer.main.get_command(app)
    given = command.commands["run"].make_context("run", words[4:]).params
    assert str(given["config"]).startswith(f"{IMAGE_ROOT}/")
    return load_config(ROOT / Path(given["config"]).relative_to(IMAGE_ROOT), given["changes"]), given


def service(name: str) -> dict[str, Any]:
    return yaml.safe_load(load(name)["spec"]["serveConfigV2"])


def test_the_folder_holds_what_is_tested() -> None:
    assert set(MANIFESTS) == {*JOBS, *SERVICES, "storage"}
    assert set(DOCKERFILES) == {"cpu", "gpu"}


@pytest.mark.parametrize("name", [*JOBS, *SERVICES])
def test_a_manifest_is_of_the_pinned_ray_and_of_our_images(name: str) -> None:
    manifest = load(name)
    assert manifest["apiVersion"] == "ray.io/v1"
    assert manifest["kind"] == ("RayJob" if name in JOBS else "RayService")
    assert ray_cluster(name)["rayVersion"] == RAY
    assert ray_cluster(name)["enableInTreeAutoscaling"] is True
    for group in groups(name):
        for container in group["template"]["spec"]["containers"]:
            assert container["image"] in {f"broadfast:{kind}" for kind in DOCKERFILES}
            assert container["resources"]["limits"] == container["resources"]["requests"]


@pytest.mark.parametrize("name", [*JOBS, *SERVICES])
def test_every_pod_mounts_the_shared_storage(name: str) -> None:
    claim = load("storage")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in groups(name):
        pod = group["template"]["spec"]
        claimed = {
            v["name"]: v["persistentVolumeClaim"]["claimName"]
            for v in pod["volumes"]
            if len(v) > 1 and "persistentVolumeClaim" in v
        }
        assert claimed == {"shared": claim["metadata"]["name"]}
        assert pod["securityContext"] == {"fsGroup": 1000}, "the image's user"
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts["shared"] == "/shared"
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", [*JOBS, *SERVICES])
def test_workers_may_be_on_spot_nodes_and_the_head_not(name: str) -> None:
    head, *workers = groups(name)
    assert "affinity" not in head["template"]["spec"] and "tolerations" not in head["template"]["spec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    for group in workers:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        keys = {t["key"] for t in group["template"]["spec"].get("tolerations", ())}
        assert ("nvidia.com/gpu" in limits) == ({"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= keys)


@pytest.mark.parametrize("name", JOBS)
def test_a_jobs_command_runs_with_the_workers_that_are_up(name: str) -> None:
    config, given = job(name)
    assert given["out"].is_absolute() and str(given["out"]).startswith("/shared/")
    assert str(getattr(config.source, "path", "")).startswith("/shared/")
    least, most = offered(name, "minReplicas"), offered(name, "maxReplicas")
    stages = select(given["first"], given["last"])
    for stage in stages:
        need = stage.need(config)
        assert need.gpus <= least["nvidia.com/gpu"] and need.cpus <= least["cpu"], stage.name
    if name == "generate":
        for later in ("samples", "judgements"):  # as its comment says: --to alone is changed
            (last,) = select(later, later)
            assert last.need(config).gpus <= least["nvidia.com/gpu"] and last.need(config).cpus <= least["cpu"]
        assert config.engine.replicas.max * 2 == most["nvidia.com/gpu"]
    assert load(name)["spec"]["backoffLimit"] > 0


def test_one_pod_holds_a_whole_engine() -> None:
    config, _ = job("generate")
    (group,) = ray_cluster("generate")["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) >= config.engine.replicas.gpus
    assert int(limits["cpu"]) >= config.engine.replicas.cpus


def test_the_whole_run_fits_on_the_trainers_node() -> None:
    config, _ = job("train")
    for stage in select(None, None):
        need = stage.need(config)
        assert need.gpus <= offered("train", "minReplicas")["nvidia.com/gpu"]
        assert need.cpus <= offered("train", "minReplicas")["cpu"]
    assert not any(
        plan.problem for plan in plan_stages(config, Fleet(find_gpu("H100-80G"), 1, 8, 1000), select(None, None))
    )


@pytest.mark.parametrize("name", SERVICES)
def test_a_services_settings_load_and_its_replicas_can_be_placed(name: str) -> None:
    from importlib import import_module

    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(service(name))
    (application,) = config.applications
    module, _, builder = application.import_path.partition(":")
    assert callable(getattr(import_module(module), builder))
    given = ServiceArguments.model_validate(application.args)
    assert str(given.export_dir).startswith("/shared/")
    assert not {"host", "port"} & set(application.args["settings"])
    for bound in ("min", "max"):
        have = offered(name, f"{bound}Replicas")
        copies = getattr(given.settings.replicas, bound)
        assert copies * given.settings.cpus_per_replica <= have["cpu"]
        assert copies * given.settings.gpus_per_replica <= have["nvidia.com/gpu"]
    assert (given.settings.gpus_per_replica > 0) == (name == "student-gpu")
    assert config.http_options.port == ServeSettings().port
    assert config.http_options.request_timeout_s == http_options(given.settings)["request_timeout_s"]


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_an_image_takes_its_versions_from_pyproject_and_copies_what_exists(kind: str) -> None:
    text = DOCKERFILES[kind].read_text(encoding="utf-8")
    assert re.findall(r"pip install .*'\.\[(\w+)\]'", text) == [kind]
    assert kind in PROJECT["optional-dependencies"]
    assert "==" not in text and "--uid 1000 ray" in text
    copied = [word for line in re.findall(r"^COPY (.+)", text, re.M) for word in line.split()[:-1]]
    assert copied and all((ROOT / path).exists() for path in copied)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages <= set(copied)
    assert f"WORKDIR {IMAGE_ROOT}" in text and f"PYTHONPATH={IMAGE_ROOT}" in text
    python = re.findall(r"^FROM python:([\d.]+)-slim", text, re.M)[0]
    assert PROJECT["requires-python"] == f">={python}"
    assert f"-f cluster/deployment/docker/{DOCKERFILES[kind].name} -t broadfast:{kind}" in text


def test_files_that_comments_name_exist() -> None:
    named = set()
    for path in [*MANIFESTS.values(), *DOCKERFILES.values(), ROOT / "cluster/deployment/ray-up.yaml"]:
        named |= set(re.findall(r"\b(?:cluster|workflows)/[\w./-]+\.\w+", path.read_text(encoding="utf-8")))
    assert named and all((ROOT / name).is_file() for name in named)


def test_the_launchers_file_is_one_that_ray_takes() -> None:
    from ray.autoscaler._private.util import fill_node_type_min_max_workers, validate_config

    text = (ROOT / "cluster/deployment/ray-up.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    validate_config(config | {"cluster_synced_files": []})
    fill_node_type_min_max_workers(config)
    assert config["docker"]["image"] in {f"broadfast:{kind}" for kind in DOCKERFILES}
    node = config["available_node_types"]["gpu"]
    settings = load_config(ROOT / "workflows/configs/gpu.toml")
    needs = [stage.need(settings) for stage in select(None, None)]
    assert max(need.gpus for need in needs) <= node["min_workers"] * node["resources"]["GPU"]
    assert max(need.cpus for need in needs) <= node["min_workers"] * node["resources"]["CPU"]


def test_the_application_refuses_what_is_misspelt_and_what_is_no_export(tmp_path: Path) -> None:
    from pydantic import ValidationError

    from cluster.base.errors import UserError
    from serve.on_ray.application import app as build

    with pytest.raises(ValidationError, match="exports_dir"):
        build({"exports_dir": str(tmp_path)})
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        build({"export_dir": str(tmp_path)})


def test_the_application_is_open_to_the_tokens_of_its_settings_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.base.errors import UserError
    from serve.http.bearer_tokens import Tokens
    from serve.on_ray import application as deploy

    given: list[object] = []
    monkeypatch.setattr(deploy, "check_exports", lambda *_: None)
    monkeypatch.setattr(deploy, "build_app", lambda *arguments: given.append(arguments[2]))
    file = tmp_path / "tokens"
    arguments = {"export_dir": str(tmp_path), "settings": {"auth": {"tokens_file": str(file)}}}
    with pytest.raises(UserError, match=r"serve\.auth\.tokens_file .* cannot be read"):
        deploy.app(arguments)
    file.write_text("0123456789abcdef\n", encoding="utf-8")
    deploy.app(arguments)
    assert given == [Tokens((hashlib.sha256(b"0123456789abcdef").digest(),))]
