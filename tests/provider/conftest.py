"""Two ways to reach a simulated provider: in process over ASGI (for virtual time), and over TCP under uvicorn."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn

from headgate.testing.provider import Latency, ProviderSettings, SimulatedProvider


@dataclass
class Answer:
    """What came back, as far as it came back."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of every event of a stream that is JSON."""
        lines = [line for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]


class Client:
    """Calls a provider in process; a call may leave after so many chunks, or when an event says so."""

    def __init__(self, provider: SimulatedProvider) -> None:
        self.provider = provider

    async def call(
        self,
        path: str,
        payload: Any = None,
        *,
        method: str = "POST",
        headers: dict[str, str] | None = None,
        leave: asyncio.Event | None = None,
        leave_after_chunks: int | None = None,
    ) -> Answer:
        answer = Answer()
        leave = asyncio.Event() if leave is None else leave
        body = payload if isinstance(payload, bytes) else b"" if payload is None else json.dumps(payload).encode()
        inbox = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if inbox:
                return inbox.pop()
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
                return
            answer.chunks.append(message["body"])
            answer.complete = not message["more_body"]
            # A server lets others run while it writes.
            await asyncio.sleep(0)
            if leave_after_chunks is not None and len(answer.chunks) >= leave_after_chunks:
                leave.set()

        given = {"x-api-key": "sk-test-0001", **(headers or {})}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"beta=true",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }
        await self.provider(scope, receive, send)
        return answer

    async def message(self, text: str = "Hello", *, max_tokens: int = 100, **options: Any) -> Answer:
        """Post one plain Anthropic message; what is no option of `call` goes into the body."""
        known = ("headers", "leave", "leave_after_chunks")
        passed = {name: options.pop(name) for name in known if name in options}
        payload = {
            "model": "claude-sonnet-4-5",
            "max_tokens": max_tokens,
            "messages": [{"role": "user", "content": text}],
            **options,
        }
        return await self.call("/v1/messages", payload, **passed)

    async def chat(self, text: str = "Hello", **options: Any) -> Answer:
        """Post one plain OpenAI chat completion."""
        passed = {name: options.pop(name) for name in ("headers", "leave", "leave_after_chunks") if name in options}
        payload = {"model": "gpt-5", "messages": [{"role": "user", "content": text}], **options}
        return await self.call("/v1/chat/completions", payload, **passed)


@dataclass
class Served:
    """A provider under uvicorn, on a free port of the loopback interface."""

    provider: SimulatedProvider
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def _serving(settings: ProviderSettings) -> Iterator[Served]:
    provider = SimulatedProvider(settings)
    # Bound before the server runs: a client can connect at once, so that nobody has to wait for a start.
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(provider, log_level="warning", ws="none", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield Served(provider, listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
        assert not thread.is_alive()


# Ten minutes past a whole hour.
WALL_S = 1_800_000_600.0


def instant(**settings: Any) -> ProviderSettings:
    """Settings of a provider that answers at once and always at the same length."""
    return ProviderSettings(**{"latency": Latency.none(), "output_sigma": 0.0, "mean_output_tokens": 25, **settings})


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Give a function that serves a provider over TCP until the test ends."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(_serving(instant(**settings)))


@pytest.fixture
def client() -> Callable[..., Client]:
    """Give a function that makes a client of a fresh provider in process."""
    return lambda **settings: Client(SimulatedProvider(instant(**settings), wall_s=lambda: WALL_S))
