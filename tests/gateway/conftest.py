"""A whole Headgate on free loopback ports: simulated provider, gateway, SQLite store; real time, real sockets."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from told_shapes import check_told

from headgate.adapters.config import load_config
from headgate.adapters.providers.http import HttpClient, parse_url
from headgate.adapters.server import run, serve
from headgate.cli.reloading import Reloading
from headgate.cli.serving import gateway_of
from headgate.compose import House, open_house
from headgate.testing.provider import Latency, ProviderSettings, SimulatedProvider

PROVIDER_KEY = "sk-planted-provider-secret"

CONFIG = """
[store]
url = "sqlite:///headgate.sqlite"
[server]
{server}
[[account]]
name = "claude"
provider = "anthropic"
base_url = "{provider}"
api_key = "env:PROVIDER_KEY"
models = ["claude-*"]
{account}
[[account]]
name = "gpt"
provider = "openai"
base_url = "{provider}/v1"
api_key = "env:PROVIDER_KEY"
models = ["gpt-*", "text-embedding-*"]
[retries]
first_delay_s = 0.001
most_delay_s = 0.002
{limits}
"""


@dataclass
class Stack:
    house: House
    provider: SimulatedProvider
    url: str
    http: HttpClient

    async def send(
        self, method: str, path: str, body: bytes = b"", headers: list[tuple[bytes, bytes]] | None = None
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        origin, _ = parse_url(self.url)
        async with self.http.send(method, origin, path.encode(), headers=headers or [], body=body) as reply:
            named = {name.lower(): value for name, value in reply.headers}
            answer = await reply.read(64 * 1024 * 1024)
        if path.startswith("/api/v1/"):
            check_told(method, path, reply.status, answer)
        return reply.status, named, answer

    async def get(self, path: str, headers: list[tuple[bytes, bytes]] | None = None) -> dict[str, Any]:
        status, _, body = await self.send("GET", path, headers=headers)
        assert status == 200, body
        found = json.loads(body)
        assert isinstance(found, dict)
        return found

    async def total(self) -> dict[str, int]:
        found = await self.get("/api/v1/usage")
        return found["total"]


@asynccontextmanager
async def open_stack(
    folder: Path,
    *,
    limits: str = "",
    server: str = "",
    account: str = "",
    provider: ProviderSettings | None = None,
    app: Any = None,
    environ: dict[str, str] | None = None,
) -> AsyncIterator[Stack]:
    simulated = SimulatedProvider(provider or ProviderSettings(latency=Latency.none()))
    path = folder / "headgate.toml"
    async with serve(app or simulated, "127.0.0.1", 0, drain_s=1.0) as upstream:
        address = f"http://127.0.0.1:{upstream.address[1]}"
        path.write_text(
            CONFIG.format(
                provider=address,
                limits=limits.format(at=address) if "{at}" in limits else limits,
                server=server,
                account=account,
            )
        )
        environ = {"PROVIDER_KEY": PROVIDER_KEY, **(environ or {})}
        config = load_config(path, environ)
        async with (
            open_house(config) as house,
            gateway_of(house, "127.0.0.1", 0, reloading=Reloading(house, environ)) as gateway,
        ):
            http = HttpClient()
            try:
                yield Stack(house, simulated, f"http://127.0.0.1:{gateway.address[1]}", http)
            finally:
                await http.close()


@pytest.fixture
def with_stack(tmp_path, caplog) -> Callable[..., None]:
    """Run a test over a stack; whatever it did, the provider's key must be in no file and in no line of a log."""

    def run_with(test: Callable[[Stack], Any], **settings: Any) -> None:
        async def main() -> None:
            async with asyncio.timeout(60), open_stack(tmp_path, **settings) as stack:
                await test(stack)

        caplog.set_level(logging.DEBUG, logger="headgate")
        run(main())
        assert PROVIDER_KEY not in caplog.text
        for file in tmp_path.rglob("*"):
            assert not file.is_file() or PROVIDER_KEY.encode() not in file.read_bytes(), file

    return run_with
