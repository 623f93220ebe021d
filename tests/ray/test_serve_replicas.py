"""Two replicas behind one address: tokens, figures of both, a new export under load, and one killed under load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
import torch
from ray.exceptions import RayError
from safetensors.torch import load_file, save_file

from cluster.base.errors import UserError
from cluster.base.free_port import free_port
from serve.config import AuthSettings, ReplicaSettings, ServeSettings
from serve.on_ray.rollout import roll_export, service_handle, states
from serve.on_ray.running_service import RunningService, score_once, serve_export
from tests.helpers.report_run import write_export

TOKEN = "a-token-of-the-shop-0123456789"
PRODUCTS = [{"id": str(i), "title": "red phone case mug lamp " * 8} for i in range(100)]
PATIENCE_S = 300  # ends a hang; here it takes as long as a replica needs to load


@pytest.fixture(scope="module")
def service(local_ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    export = write_export(folder / "export", folder / "bert")
    (folder / "tokens").write_text(TOKEN, encoding="utf-8")
    port = free_port()
    settings = ServeSettings(
        port=port,
        cpus_per_replica=0.5,
        replicas=ReplicaSettings(min=2, max=2),
        auth=AuthSettings(tokens_file=folder / "tokens"),
        request_timeout_s=120,
    )
    running = serve_export(export, settings, ready=lambda url: None, blocking=False)
    yield running
    running.stop()


def replicas() -> set[str]:
    """The names of the replicas that say what they have loaded."""
    return {state.replica for state in states(service_handle())}


def until_there_are(count: int) -> set[str]:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            found = replicas()
        except RayError:  # asked of the one that is gone
            found = set()
        if len(found) == count:
            return found
        assert time.monotonic() < deadline, f"still {found}"
        time.sleep(0.2)


def test_only_a_known_token_is_served(service):
    with pytest.raises(UserError, match="answered 401"):
        score_once(service.url, "red phone", PRODUCTS[:1])
    assert len(score_once(service.url, "red phone", PRODUCTS[:1], token=TOKEN)["results"]) == 1


def ask(service: RunningService) -> tuple[str, str]:
    """Score once; return how it ended, and by which model."""
    try:
        answer = score_once(service.url, "red phone", PRODUCTS, timeout_s=PATIENCE_S, token=TOKEN)
    except UserError as error:
        return str(error).partition(" answered ")[2][:3], ""
    return f"{len(answer['results'])} results", answer["model"]


def asked_while(service: RunningService, act: Callable[[], object]) -> list[tuple[str, str]]:
    """Ask from four sides for as long as `act` takes; return every end, in the order of the questions."""
    done, ends = threading.Event(), []

    def ask_on() -> None:
        while not done.is_set():
            ends.append(ask(service))

    with ThreadPoolExecutor(4) as pool:
        sides = [pool.submit(ask_on) for _ in range(4)]
        try:
            act()
        finally:
            done.set()
        for side in sides:
            side.result(PATIENCE_S)
    return ends


def test_a_new_export_is_rolled_in_with_no_failed_request(service, tmp_path):
    second = write_export(tmp_path / "second", tmp_path / "bert")
    ends = asked_while(service, lambda: roll_export(second))
    assert {end for end, _ in ends} == {"100 results"}
    models = [model for _, model in ends]
    assert models[0].startswith("export@") or models[0] == "export"
    after = {ask(service)[1] for _ in range(8)}
    assert len(after) == 1 and after != {models[0]}, "both replicas answer by the new one"
    with pytest.raises(UserError, match=r"answers with .+ already"):
        roll_export(second)


def test_a_damaged_export_is_rolled_back_with_no_failed_request(service, tmp_path):
    before, damaged = ask(service)[1], write_export(tmp_path / "damaged", tmp_path / "bert")
    weights = load_file(damaged / "model.safetensors")
    save_file(
        {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}, damaged / "model.safetensors"
    )

    def act() -> None:
        with pytest.raises(UserError, match=r"was not rolled in, so .*second continues to answer: .*damaged"):
            roll_export(damaged)

    assert set(asked_while(service, act)) == {("100 results", before)}
    assert {ask(service) for _ in range(8)} == {("100 results", before)}


def test_a_replica_killed_under_load_is_replaced_and_nothing_hangs(service):
    before, model = until_there_are(2), ask(service)[1]
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    victim = next(name for name in names if "SERVE_REPLICA" in name)
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, service) for _ in range(60)]
        while not any(future.done() for future in asked):
            time.sleep(0.005)
        ray.kill(ray.get_actor(victim, namespace="serve"))
        ends = [future.result(PATIENCE_S)[0] for future in asked]
    assert set(ends) <= {"100 results", "408", "500", "503"}, "answered, or refused"
    assert ends.count("100 results") > 30, "the other one went on"
    after = until_there_are(2)
    assert len(after & before) == 1, "one was kept, one is new"
    assert {ask(service) for _ in range(6)} == {("100 results", model)}, "the new one has what was rolled in"
