"""How the upstream client gets to a host: its addresses, its time for each step, and the proxy before it."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from http_peers import OK, RUNNERS, Peer, Runner, answering, client_for, figures, playing, post, silent, until
from test_http_tls import certificate, server_tls, trusting

from headgate.adapters.providers.http import HttpSettings, NotSent, Origin, Timeouts
from headgate.adapters.providers.http_pool import HostPool
from headgate.adapters.providers.http_proxies import Proxies
from headgate.testing import virtual_time

__all__ = ["certificate"]

PASSWORD = "planted-proxy-password"


@pytest.fixture(params=RUNNERS)
def run(request: pytest.FixtureRequest) -> Runner:
    return RUNNERS[request.param]


class Tunnels:
    """A proxy that leads every tunnel to one port of this machine, or refuses it."""

    def __init__(self, port: int, status: bytes = b"200 OK") -> None:
        self.port = port
        self.status = status
        self.heads: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 " + self.status + b"\r\nvia: test\r\n\r\n")
        if self.status.startswith(b"200"):
            there = await asyncio.open_connection("127.0.0.1", self.port)
            await asyncio.gather(_pour(reader, there[1]), _pour(there[0], writer), return_exceptions=True)
        writer.close()


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
    writer.close()


@asynccontextmanager
async def proxy(port: int, status: bytes = b"200 OK") -> AsyncIterator[tuple[Tunnels, str]]:
    tunnels = Tunnels(port, status)
    server = await asyncio.start_server(tunnels, "127.0.0.1", 0)
    async with server:
        yield tunnels, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def test_a_tunnel_leads_through_a_proxy_which_sees_no_key(run: Runner, certificate: Path) -> None:
    async def main() -> None:
        async with (
            playing(answering(OK), tls=server_tls(certificate)) as script,
            proxy(script.origin.port) as (tunnels, at),
        ):
            proxies = Proxies.of_environment({"HTTPS_PROXY": f"http://me:{PASSWORD}@{at}"})
            settings = HttpSettings(proxies=proxies, tls=trusting(certificate).tls)
            async with client_for(settings) as client:
                origin = Origin("https", "provider.example", 443)
                for _ in range(2):
                    assert await post(client, origin) == (200, b"hi")
            [head] = tunnels.heads
            assert head.startswith(b"CONNECT provider.example:443 HTTP/1.1\r\nhost: provider.example:443\r\n")
            assert b"proxy-authorization: Basic bWU6" in head
            assert b"sk-secret" not in head
            assert script.requests[0].startswith(b"POST /v1/messages HTTP/1.1\r\nhost: provider.example\r\n")
            assert b"proxy-authorization" not in script.requests[0]

    run(main())


def test_plain_http_is_asked_of_the_proxy_with_the_whole_address(run: Runner) -> None:
    async def main() -> None:
        async with playing(answering(OK)) as script:
            proxies = Proxies.of_environment({"http_proxy": f"me:{PASSWORD}@127.0.0.1:{script.origin.port}"})
            async with client_for(HttpSettings(proxies=proxies)) as client:
                assert await post(client, Origin("http", "models.internal", 8000)) == (200, b"hi")
            [request] = script.requests
            assert request.startswith(b"POST http://models.internal:8000/v1/messages HTTP/1.1\r\n")
            assert b"\r\nhost: models.internal:8000\r\n" in request
            assert b"\r\nproxy-authorization: Basic " in request

    run(main())


def test_a_proxy_that_refuses_is_named_without_its_password(run: Runner) -> None:
    async def main() -> None:
        async with proxy(0, b"407 Proxy Authentication Required") as (_, at):
            proxies = Proxies.of_environment({"all_proxy": f"http://me:{PASSWORD}@{at}"})
            async with client_for(HttpSettings(proxies=proxies, tls=ssl.create_default_context())) as client:
                with pytest.raises(NotSent, match=f"proxy {at}: it refused a tunnel with status 407") as caught:
                    await post(client, Origin("https", "provider.example", 443))
                assert PASSWORD not in str(caught.value) + repr(proxies)

    run(main())


@pytest.mark.parametrize(
    ("origin", "listed", "direct"),
    [
        ("provider.example:443", "", False),
        ("provider.example:443", "other.example", False),
        ("provider.example:443", "rovider.example", False),
        ("provider.example:443", "provider.example", True),
        ("api.provider.example:443", "a,.provider.example", True),
        ("api.provider.example:443", "*.provider.example", True),
        ("provider.example:443", "provider.example:8443", False),
        ("provider.example:8443", "provider.example:8443", True),
        ("provider.example:443", "*", True),
        ("10.1.2.3:443", "10.0.0.0/8", True),
        ("11.1.2.3:443", "10.0.0.0/8", False),
        ("127.0.0.1:443", "", True),
        ("localhost:443", "", True),
        ("::1:443", "", True),
    ],
)
def test_who_is_asked_without_a_proxy(origin: str, listed: str, *, direct: bool) -> None:
    host, _, port = origin.rpartition(":")
    proxies = Proxies.of_environment({"https_proxy": "http://proxy:3128", "NO_PROXY": listed})
    assert (proxies.proxy_for(Origin("https", host, int(port))) is None) is direct


def test_what_the_environment_says_of_proxies() -> None:
    at = Origin("http", "models.internal", 80)
    both = Proxies.of_environment({"http_proxy": "first:1", "HTTP_PROXY": "second:2"})
    assert (found := both.proxy_for(at)) is not None
    assert found.label == "first:1"
    assert Proxies.of_environment({"HTTP_PROXY": "from-a-client:1", "REQUEST_METHOD": "GET"}).proxy_for(at) is None
    assert Proxies.of_environment({"https_proxy": ""}).proxy_for(at._replace(scheme="https")) is None
    for wrong in (f"socks5://me:{PASSWORD}@proxy:1", "http://", f"http://me:{PASSWORD}@proxy:port"):
        found = Proxies.of_environment({"ALL_PROXY": wrong, "no_proxy": "direct.example"})
        with pytest.raises(ValueError, match=r"^ALL_PROXY names no HTTP proxy: expected http://") as caught:
            found.proxy_for(at)
        assert PASSWORD not in str(caught.value)
        assert found.proxy_for(Origin("https", "direct.example", 443)) is None  # nobody needs it there


def test_a_proxy_that_cannot_be_used_is_told_by_the_call_that_needs_it() -> None:
    async def main() -> None:
        proxies = Proxies.of_environment({"all_proxy": f"socks5h://me:{PASSWORD}@proxy:1"})
        async with playing(answering(OK)) as script, client_for(HttpSettings(proxies=proxies)) as client:
            assert await post(client, script.origin) == (200, b"hi")
            with pytest.raises(NotSent, match="all_proxy names no HTTP proxy") as caught:
                await post(client, Origin("http", "provider.example", 80))
            assert PASSWORD not in str(caught.value)

    virtual_time.run(main())


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example"])
def test_a_host_that_cannot_be_a_name_was_not_sent(host: str) -> None:
    async def main() -> None:
        async with client_for() as client:
            with pytest.raises(NotSent, match="it is no name") as caught:
                await post(client, Origin("http", host, 80))
            assert caught.value.why == "dns"

    virtual_time.run(main())


def _address(port: int) -> tuple[Any, ...]:
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))


def test_an_address_that_does_not_answer_costs_a_quarter_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        tried: list[int] = []
        connect = loop.sock_connect

        async def sock_connect(sock: socket.socket, at: tuple[str, int]) -> None:
            tried.append(at[1])
            if at[1] == 1:
                await loop.create_future()
            await connect(sock, at)

        async with playing(answering(OK)) as script, client_for() as client:

            async def two(*_: object, **__: object) -> list[tuple[Any, ...]]:
                return [_address(1), _address(script.origin.port)]

            monkeypatch.setattr(loop, "getaddrinfo", two)
            monkeypatch.setattr(loop, "sock_connect", sock_connect)
            start_s = loop.time()
            assert await post(client, Origin("http", "provider.example", 80)) == (200, b"hi")
            assert loop.time() - start_s == pytest.approx(0.25, abs=0.01)
            assert tried == [1, script.origin.port]

    virtual_time.run(main())


@pytest.mark.parametrize(("step", "bound_s"), [("getaddrinfo", 2), ("sock_connect", 3)])
def test_each_step_has_a_time_of_its_own(monkeypatch: pytest.MonkeyPatch, step: str, bound_s: float) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def never(*_: object, **__: object) -> None:
            await loop.create_future()

        monkeypatch.setattr(loop, step, never)
        host = "provider.example" if step == "getaddrinfo" else "127.0.0.1"
        async with client_for() as client:
            start_s = loop.time()
            with pytest.raises(NotSent, match=f"within {bound_s} s"):
                await post(client, Origin("http", host, 80), timeouts=Timeouts(dns_s=2, connect_s=3, tls_s=4))
            assert loop.time() - start_s == pytest.approx(bound_s, abs=0.01)

    virtual_time.run(main())


def test_there_may_be_more_connections_when_calls_wait_and_fewer_when_few_are_used() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        settings = HttpSettings(first_connections=4, connections_per_host=10, grow_after_s=0.5, idle_s=300)
        hold = asyncio.Event()

        async def play(peer: Peer) -> None:
            while await peer.request():
                await hold.wait()
                await peer.say(OK)

        async with playing(play) as script, client_for(settings) as client:

            def stats() -> Any:
                return client.stats()[f"http://{script.origin.label}"]

            calls = [asyncio.create_task(post(client, script.origin)) for _ in range(20)]
            await until(lambda: bool(client.stats()) and stats().open == 4 and stats().waiting == 16)
            begun_s = loop.time()
            await asyncio.sleep(0.6)
            await until(lambda: stats().open == 6)  # half as many more, once a call has waited so long
            await asyncio.sleep(2)
            await until(lambda: stats().open == 10)
            assert (stats().bound, stats().grown, stats().waiting) == (10, 3, 10)
            hold.set()
            assert len(await asyncio.gather(*calls)) == 20
            assert stats().waited_s >= 10 * (loop.time() - begun_s) * 0.9
            for _ in range(60):  # a trickle keeps one connection in use
                await asyncio.sleep(30)
                await post(client, script.origin)
            assert (stats().bound, stats().open) == (4, 1)
            assert stats().shrunk >= 2

    virtual_time.run(main())


def test_what_is_handed_from_call_to_call_counts_as_used() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        settings = HttpSettings(first_connections=4, connections_per_host=40, grow_after_s=0.01, idle_s=300)
        async with playing(silent) as script:
            pool = HostPool(script.origin, settings, None)
            got = list(await asyncio.gather(*[pool.acquire(Timeouts(), loop.time()) for _ in range(12)]))
            for connection in got:
                pool.idle(connection)
            assert pool.stats().grown == 3
            await asyncio.sleep(200)  # a look at what was used is due in a hundred seconds
            assert pool.stats().shrunk == 0
            await asyncio.sleep(150)
            assert pool.stats().shrunk == 0  # twelve were in use at once since the last one
            await pool.close()

    virtual_time.run(main())


def test_many_calls_at_once_do_not_wait_for_what_may_still_be_opened(run: Runner) -> None:
    async def main() -> None:
        async with playing(silent) as script, client_for(HttpSettings(first_connections=50)) as client:
            calls = [asyncio.create_task(post(client, script.origin)) for _ in range(50)]
            await until(lambda: figures(client, script) == (50, 0, 50, 0))
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    run(main())
