"""How the upstream client connects: refusals, names, TLS."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from http_peers import (
    OK,
    RUNNERS,
    Peer,
    Runner,
    answering,
    answering_once,
    client_for,
    figures,
    playing,
    post,
)

from headgate.adapters.providers.http import (
    Broken,
    HttpSettings,
    NotSent,
    Origin,
)
from headgate.testing import virtual_time


@pytest.fixture(params=RUNNERS)
def run(request: pytest.FixtureRequest) -> Runner:
    return RUNNERS[request.param]


def test_a_refused_connection_was_not_sent(run: Runner) -> None:
    async def main() -> None:
        with socket.socket() as plug:
            plug.bind(("127.0.0.1", 0))
            origin = Origin("http", "127.0.0.1", plug.getsockname()[1])
            async with client_for() as client:
                with pytest.raises(NotSent, match=f"127.0.0.1:{origin.port}: no connection: ") as caught:
                    await post(client, origin)
                assert caught.value.why == "connect"
                assert (caught.value.failure.sent, caught.value.failure.retryable) == (False, True)
                assert client._pools[origin].is_unused

    run(main())


def test_a_name_without_an_address_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async def no_such_name(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", no_such_name)
        async with client_for() as client:
            with pytest.raises(NotSent, match=r"provider\.invalid:443: the name has no address") as caught:
                await post(client, Origin("https", "provider.invalid", 443))
            assert caught.value.why == "dns"

    virtual_time.run(main())


def test_the_time_to_connect_includes_tls_and_is_bounded() -> None:
    async def main() -> None:
        async def says_nothing(peer: Peer) -> None:
            await peer.reader.read()

        async with playing(says_nothing) as script, client_for() as client:
            start_s = asyncio.get_running_loop().time()
            origin = script.origin._replace(scheme="https")
            with pytest.raises(NotSent, match="within 10 s") as caught:
                await post(client, origin)
            assert caught.value.why == "timeout"
            assert asyncio.get_running_loop().time() - start_s == pytest.approx(10, abs=0.01)
            assert client._pools[origin].is_unused

    virtual_time.run(main())


def test_hosts_that_are_not_used_any_more_are_forgotten() -> None:
    async def main() -> None:
        async with client_for() as client:
            for port in range(1, 1000):
                client.pool(Origin("http", "127.0.0.1", port))
            assert len(client.stats()) <= 256

    virtual_time.run(main())


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `localhost`, signed by itself, with its key in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the command openssl, which makes the certificate, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    made = subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,DNS:provider.example",
         "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, capture_output=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    both = folder / "both.pem"
    both.write_bytes((folder / "cert.pem").read_bytes() + (folder / "key.pem").read_bytes())
    return both


def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def trusting(certificate: Path) -> HttpSettings:
    context = ssl.create_default_context(cafile=certificate)
    context.set_alpn_protocols(["http/1.1"])
    return HttpSettings(tls=context)


def test_tls_names_the_server_chooses_http_1_and_keeps_the_connection(run: Runner, certificate: Path) -> None:
    async def main() -> None:
        names: list[str | None] = []
        protocols: list[str | None] = []
        body = b"y" * 500_000

        async def play(peer: Peer) -> None:
            protocols.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
            while await peer.request():
                await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body), body)

        tls = server_tls(certificate)
        tls.sni_callback = lambda _, name, __: names.append(name)
        async with playing(play, tls=tls) as script, client_for(trusting(certificate)) as client:
            for _ in range(2):
                assert await post(client, script.origin, b"x" * 500_000) == (200, body)
            assert (names, protocols) == (["localhost"], ["http/1.1"])
            assert figures(client, script) == (1, 1, 0, 0)
            async with client.send("POST", script.origin, b"/", headers=[]) as reply:
                await anext(reply)
            assert figures(client, script) == (0, 0, 0, 0)

    run(main())


def test_the_system_decides_whom_to_trust_and_http_1_is_asked_for(
    run: Runner, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        protocols: list[str | None] = []

        async def play(peer: Peer) -> None:
            protocols.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
            await answering(OK)(peer)

        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with playing(play, tls=server_tls(certificate)) as script, client_for() as client:
            assert await post(client, script.origin) == (200, b"hi")
        assert protocols == ["http/1.1"]

    run(main())


def test_a_body_cut_off_under_tls_is_an_error_too(run: Runner, certificate: Path) -> None:
    async def main() -> None:
        cut = answering_once(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi")
        async with playing(cut, tls=server_tls(certificate)) as script, client_for(trusting(certificate)) as client:
            with pytest.raises(Broken):
                await post(client, script.origin)

    run(main())


@pytest.mark.parametrize(("host", "trusted"), [("localhost", "nobody"), ("127.0.0.1", "the certificate")])
def test_a_server_that_cannot_prove_who_it_is_gets_nothing(
    run: Runner, certificate: Path, host: str, trusted: str
) -> None:
    async def main() -> None:
        settings = trusting(certificate) if trusted == "the certificate" else HttpSettings()
        async with playing(answering(OK), tls=server_tls(certificate)) as script, client_for(settings) as client:
            with pytest.raises(NotSent, match="certificate") as caught:
                await post(client, script.origin._replace(host=host))
            assert caught.value.why == "certificate"
            assert not caught.value.failure.retryable
            assert script.requests == []

    # Its side of the broken handshake is the server's affair, and asyncio would report it.
    async def quietly() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        await main()

    run(quietly())


def test_plain_http_from_a_port_that_was_to_speak_tls_was_not_sent(run: Runner) -> None:
    async def main() -> None:
        async def play(peer: Peer) -> None:
            await peer.reader.read(100)
            await peer.say(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

        async with playing(play) as script, client_for() as client:
            with pytest.raises(NotSent) as caught:
                await post(client, script.origin._replace(scheme="https"))
            assert caught.value.why == "tls"

    run(main())
