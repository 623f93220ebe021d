"""A server that speaks OpenAI's API and says what a test has written down, on a free port of this machine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mpcot.asking.address.meter import Grant, Meter
from mpcot.asking.engines.config import OpenAiEngine

MODEL = "scripted-1"
USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 40}}
ANSWER = "The product was compared with the query, word by word.\nVerdict: E"


@dataclass(frozen=True)
class Said:
    """One response; `raw` takes the place of the JSON `body`, and with `cut` the connection ends in its middle."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    raw: bytes | None = None
    cut: bool = False


def completion(text: str | None = ANSWER, **more: Any) -> dict[str, Any]:
    """Return a chat completion; `more` changes its choice."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | more
    return {"id": "c", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": USAGE}


def refusal(status: int, message: str, code: Any = None, **headers: str) -> Said:
    """Return an error as OpenAI's API words it."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
    return Said(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


class ScriptedServer:
    """Answers with the responses in `script`, one after another, and then with `answer`.

    Attributes:
        asked: the bodies of all requests for completions; under `headers` their headers, with names in small letters.
        models: what it lists, or None if it lists nothing.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.script: list[Said] = []
        self.answer: Callable[[dict[str, Any]], Said] = lambda body: Said(body=completion())
        self.models: list[str] | None = [MODEL]
        self.keys: set[str] | None = None
        self.asked: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def respond(self, path: str, body: dict[str, Any], key: str) -> Said:
        """Return what is to be said to a request."""
        if self.keys is not None and key not in self.keys:
            return refusal(401, "Incorrect API key provided")
        if path.endswith("/models"):
            if self.models is None:
                return refusal(404, "no such page")
            return Said(body={"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})
        with self.lock:
            self.asked.append(body)
            if self.script:
                return self.script.pop(0)
        return self.answer(body)


def _handler(server: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._say({})

        def do_POST(self) -> None:
            self._say(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _say(self, body: dict[str, Any]) -> None:
            key = self.headers.get("Authorization", "").removeprefix("Bearer ")
            said = server.respond(
                self.path, body | {"headers": {name.lower(): value for name, value in self.headers.items()}}, key
            )
            time.sleep(said.delay_s)
            content = said.raw if said.raw is not None else json.dumps(said.body).encode()
            self.send_response(said.status)
            headers = {"Content-Type": "application/json", "Content-Length": str(len(content))} | said.headers
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if said.cut else content)
            self.close_connection = said.cut

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """Run a server for the length of the block."""
    listener = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    listener.daemon_threads = True
    server = ScriptedServer(f"http://127.0.0.1:{listener.server_port}/v1")
    listener.RequestHandlerClass = _handler(server)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


def engine_at(server: ScriptedServer, **changed: Any) -> OpenAiEngine:
    """Return the settings of an engine behind the server's address."""
    return OpenAiEngine(**{"base_url": server.url, "model": MODEL} | changed)


@dataclass
class NearMeter:
    """The meter in this process."""

    meter: Meter

    async def reserve(self, prompt_tokens: int, output_tokens: int) -> Grant:
        return self.meter.reserve(prompt_tokens, output_tokens)

    async def settle(self, reserved: tuple[int, int], prompt: int, cached: int, output: int) -> float:
        return self.meter.settle(reserved, prompt, cached, output)

    async def pause(self, seconds: float) -> None:
        self.meter.pause(seconds)
