"""What is wrong with an address is said before the run asks anybody."""

from __future__ import annotations

import socket

import pytest

from cluster.base.errors import UserError
from cluster.base.free_port import free_port
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.asking.engines.openai_engine import check_address
from tests.helpers.scripted_server import MODEL, ScriptedServer, engine_at


def test_all_is_well(server: ScriptedServer) -> None:
    check_address(engine_at(server))


def test_a_server_that_lists_no_models_is_believed(server: ScriptedServer) -> None:
    server.models = None
    check_address(engine_at(server))


def test_a_model_that_is_not_served(server: ScriptedServer) -> None:
    server.models = ["one", "two"]
    with pytest.raises(UserError, match=r"engine\.model: http.* does not serve 'scripted-1', but one, two"):
        check_address(engine_at(server))


def test_a_wrong_key_is_not_shown(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "secret-1")
    server.keys = {"right"}
    with pytest.raises(UserError, match=r"does not take the key in \$A_KEY") as said:
        check_address(engine_at(server, api_key_env="A_KEY"))
    assert "secret-1" not in str(said.value)


def test_a_variable_that_is_not_set(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(UserError, match=r"engine\.api_key_env: the variable A_KEY is not set"):
        check_address(engine_at(server, api_key_env="A_KEY"))
    with pytest.raises(UserError, match=r"engine\.headers_env\.X: the variable A_KEY is not set"):
        check_address(engine_at(server, headers_env={"X": "A_KEY"}))


def test_nobody_answers() -> None:
    engine = OpenAiEngine(base_url=f"http://127.0.0.1:{free_port()}/v1", model=MODEL)
    with pytest.raises(UserError, match=r"engine\.base_url: no server answers at http://127"):
        check_address(engine)


def test_something_else_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        engine = OpenAiEngine(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", model=MODEL, timeout_s=0.2)
        with pytest.raises(UserError, match="no server answers"):
            check_address(engine)
