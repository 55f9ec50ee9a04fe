"""Where a gateway connects to: what its configuration names, whatever a client or a provider says (SSRF, redirects)."""

import asyncio
import json

import pytest

from headgate.adapters.providers.http import parse_url
from headgate.adapters.server import serve

BODY = b'{"model":"claude-opus-4-6","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'
ANSWER = b'{"id":"m","usage":{"input_tokens":1,"output_tokens":1}}'


class Server:
    """Answers as it was told and keeps what it was asked."""

    def __init__(self, status=200, headers=()):
        self.asked = []
        self.status = status
        self.headers = headers

    async def __call__(self, scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        self.asked.append((scope["method"], scope["raw_path"], dict(scope["headers"])[b"host"]))
        headers = [(b"content-type", b"application/json"), *self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": ANSWER})


async def said(stack, raw):
    origin, _ = parse_url(stack.url)
    reader, writer = await asyncio.open_connection(origin.host, origin.port)
    writer.write(raw)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return int(head.split(b" ")[1])


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/messages"), ("GET", "/v1/models"), ("POST", "/v1/files")])
def test_no_redirect_is_followed(with_stack, status, method, path):
    """It would carry the account's key to whom the provider, or who speaks for it, names."""
    elsewhere = Server()
    provider = Server(status)

    async def test(stack):
        async with serve(elsewhere, "127.0.0.1", 0) as other:
            provider.headers = [(b"location", b"http://127.0.0.1:%d/v1/stolen" % other.address[1])]
            got, headers, answer = await stack.send(method, path, BODY if method == "POST" else b"")
            assert elsewhere.asked == []
            assert (got, answer) == (status, ANSWER)
            assert headers[b"location"].endswith(b"/v1/stolen"), "the client is told, and follows if it wants to"
            assert len(provider.asked) == 1

    with_stack(test, app=provider)


@pytest.mark.parametrize(
    "target",
    [
        "http://{elsewhere}/v1/messages",
        "http://user:pass@{elsewhere}/v1/messages",
        "//{elsewhere}/v1/messages",
        "/v1/messages?url=http://{elsewhere}/",
        "/v1/@{elsewhere}/",
        "/v1/..//{elsewhere}/",
        "/v1//{elsewhere}/v1/messages",
        "/v1/%2f%2f{elsewhere}",
        "/v1/\\{elsewhere}/",
        "/http://{elsewhere}/v1/messages",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_target_leads_elsewhere(with_stack, target, method):
    elsewhere, provider = Server(), Server()

    async def test(stack):
        async with serve(elsewhere, "127.0.0.1", 0) as other:
            place = f"127.0.0.1:{other.address[1]}"
            body = BODY if method == "POST" else b""
            head = (
                f"{method} {target.format(elsewhere=place)} HTTP/1.1\r\nhost: localhost\r\nanthropic-version: 1\r\n"
                f"x-forwarded-host: {place}\r\nforwarded: host={place}\r\nx-original-url: http://{place}/\r\n"
                f"content-length: {len(body)}\r\n\r\n"
            )
            await said(stack, head.encode() + body)
            assert elsewhere.asked == []
            for _, path, host in provider.asked:
                assert path.startswith(b"/v1/")
                assert host.decode() != place

    with_stack(test, app=provider)


@pytest.mark.parametrize("method", [b"CONNECT", b"TRACE"])
def test_it_is_no_proxy(with_stack, method):
    elsewhere, provider = Server(), Server()

    async def test(stack):
        async with serve(elsewhere, "127.0.0.1", 0) as other:
            place = b"127.0.0.1:%d" % other.address[1]
            for target in (place, b"http://%b/v1/messages" % place):
                status = await said(stack, b"%b %b HTTP/1.1\r\nhost: localhost\r\n\r\n" % (method, target))
                assert 400 <= status < 500
            assert elsewhere.asked == provider.asked == []

    with_stack(test, app=provider)


def test_an_address_in_a_body_is_not_asked(with_stack):
    """Pictures by their address are the provider's to fetch: here they are counted, and nothing is looked up."""
    elsewhere, provider = Server(), Server()

    async def test(stack):
        async with serve(elsewhere, "127.0.0.1", 0) as other:
            url = f"http://127.0.0.1:{other.address[1]}/a.png"
            picture = {"type": "image", "source": {"type": "url", "url": url}}
            wish = {
                "model": "claude-opus-4-6",
                "max_tokens": 9,
                "base_url": url,
                "api_base": url,
                "messages": [{"role": "user", "content": [picture]}],
            }
            headers = [(b"x-base-url", url.encode()), (b"x-portkey-custom-host", url.encode())]
            status, _, _ = await stack.send("POST", "/v1/messages", json.dumps(wish).encode(), headers)
            assert status == 200
            assert elsewhere.asked == []
            assert len(provider.asked) == 1

    with_stack(test, app=provider)
