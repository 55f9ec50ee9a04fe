"""A gateway with two accounts at two simulated providers, in this process; real time, real sockets."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headgate.adapters.config import load_config
from headgate.adapters.providers.http import HttpClient, parse_url
from headgate.adapters.server import serve
from headgate.cli.serving import gateway_of
from headgate.compose import House, open_house
from headgate.testing.provider import Latency, ProviderSettings, SimulatedProvider

CONFIG = """
[store]
url = "sqlite:///headgate.sqlite"
[server]
{server}
[[account]]
name = "one"
provider = "anthropic"
base_url = "{one}"
api_key = "env:ONE"
models = ["claude-*"]
soft_ceiling = 0.9
[[account]]
name = "two"
provider = "anthropic"
base_url = "{two}"
api_key = "env:TWO"
models = ["claude-*"]
[retries]
first_delay_s = 0.001
most_delay_s = 0.002
{limits}
"""
SECRETS = {"ONE": "sk-planted-first-secret", "TWO": "sk-planted-second-secret", "ADMIN": "sk-planted-admin-token"}
QUICK = ProviderSettings(latency=Latency.none())


@dataclass
class PoolStack:
    house: House
    providers: tuple[SimulatedProvider, SimulatedProvider]
    url: str
    http: HttpClient

    async def send(
        self, method: str, path: str, body: bytes = b"", headers: list[tuple[bytes, bytes]] | None = None
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        origin, _ = parse_url(self.url)
        async with self.http.send(method, origin, path.encode(), headers=headers or [], body=body) as reply:
            named = {name.lower(): value for name, value in reply.headers}
            return reply.status, named, await reply.read(64 * 1024 * 1024)

    async def get(self, path: str) -> dict[str, Any]:
        status, _, body = await self.send("GET", path)
        assert status == 200, body
        found = json.loads(body)
        assert isinstance(found, dict)
        return found


@asynccontextmanager
async def open_pool(
    folder: Path, *, one: ProviderSettings = QUICK, two: ProviderSettings = QUICK, limits: str = "", server: str = ""
) -> AsyncIterator[PoolStack]:
    providers = SimulatedProvider(one), SimulatedProvider(two)
    path = folder / "headgate.toml"
    async with (
        serve(providers[0], "127.0.0.1", 0, drain_s=1.0) as first,
        serve(providers[1], "127.0.0.1", 0, drain_s=1.0) as second,
    ):
        urls = {"one": first, "two": second}
        addresses = {name: f"http://127.0.0.1:{each.address[1]}" for name, each in urls.items()}
        path.write_text(CONFIG.format(limits=limits, server=server, **addresses))
        config = load_config(path, SECRETS)
        async with open_house(config) as house, gateway_of(house, "127.0.0.1", 0) as gateway:
            http = HttpClient()
            try:
                yield PoolStack(house, providers, f"http://127.0.0.1:{gateway.address[1]}", http)
            finally:
                await http.close()
