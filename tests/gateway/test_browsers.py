"""Pages in a browser: they give no orders, read no answers and reach this machine by no name of theirs."""

import asyncio
import json

import pytest
from standing_keys import a_standing_key, bearing

from headgate.adapters.providers.http import parse_url
from headgate.core.ledger import UsageQuery
from headgate.gateway.exchange import HttpExchange
from headgate.gateway.guarded import GUARDED
from headgate.gateway.nearby import check_nearby, check_order
from headgate.runtime.keys import NotAllowedError

GOOD = b'{"model":"claude-opus-4-6","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'
ADMIN = [(b"x-api-key", b"hg-admin-token-of-this-test")]
WITH_TOKEN = {"server": 'admin_token = "env:ADMIN"', "environ": {"ADMIN": ADMIN[0][1].decode()}}
ASKED = [("GET", "/api/v1/usage", b""), ("POST", "/v1/messages", GOOD)]
ORDERS = [
    ("PUT", "/api/v1/scheduler", b'{"policy": "fair"}'),
    ("POST", "/api/v1/reload", b""),
    ("POST", "/api/v1/keys", b'{"run": "r1", "agents": []}'),
    ("POST", "/api/v1/reservations", b"{}"),
    ("DELETE", "/api/v1/reservations/0a", b""),
    ("DELETE", "/api/v1/keys/0a", b""),
]
FROM_A_PAGE = [
    {"origin": "https://evil.example"},
    {"origin": "http://localhost:3000"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": "http://127.0.0.1:1", "sec-fetch-site": "same-site"},
]


def raw(headers):
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def came_with(**headers):
    said = raw({name.replace("_", "-"): value for name, value in headers.items()})
    return HttpExchange.of({"method": "POST", "path": "/", "query_string": b"", "headers": said}, None, None)


@pytest.mark.parametrize("headers", FROM_A_PAGE, ids=str)
@pytest.mark.parametrize(("method", "path", "body"), ORDERS, ids=lambda each: each if isinstance(each, str) else "")
def test_no_page_gives_orders_where_nobody_needs_a_token(with_stack, method, path, body, headers):
    """Another server of this machine too: a page of it says `http://localhost:3000`."""

    async def test(stack):
        before = stack.house.manager.scheduling
        status, _, answer = await stack.send(method, path, body, raw(headers))
        assert (status, json.loads(answer)["error"]["type"]) == (403, "permission_error")
        assert stack.house.manager.scheduling == before

    with_stack(test)


def test_programs_and_our_own_page_give_orders(with_stack):
    async def test(stack):
        host = stack.url.removeprefix("http://")
        for headers in ({}, {"origin": f"http://{host}", "sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}):
            status, _, answer = await stack.send("PUT", "/api/v1/scheduler", b'{"policy": "fair"}', raw(headers))
            assert status == 200, answer

    with_stack(test)


def test_who_sends_the_token_may_be_a_page(with_stack):
    """It cannot be made to: a browser sends no header of ours by itself."""

    async def test(stack):
        for headers in FROM_A_PAGE:
            status, _, _ = await stack.send("PUT", "/api/v1/scheduler", b'{"policy": "fair"}', [*ADMIN, *raw(headers)])
            assert status == 200

    with_stack(test, **WITH_TOKEN)


@pytest.mark.parametrize(
    ("headers", "is_let_in"),
    [
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}, False),
        ({"sec_fetch_site": "cross-site"}, False),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, True),
        ({"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors"}, True),
        ({"sec_fetch_site": "none", "sec_fetch_mode": "navigate"}, True),
    ],
    ids=str,
)
def test_a_picture_on_a_page_asks_nothing_and_a_link_may(headers, is_let_in):
    if is_let_in:
        check_nearby(came_with(host="localhost", **headers))
    else:
        with pytest.raises(NotAllowedError):
            check_nearby(came_with(host="localhost", **headers))


@pytest.mark.parametrize(
    ("host", "origin", "is_ours"),
    [
        ("127.0.0.1:8484", "http://127.0.0.1:8484", True),
        ("Gate.example", "https://gate.example", True),
        ("127.0.0.1:8484", "http://127.0.0.1:8485", False),
        ("127.0.0.1:8484", "http://localhost:8484", False),
        ("127.0.0.1:8484", "ftp://127.0.0.1:8484", False),
        ("127.0.0.1:8484", "http://127.0.0.1:8484.evil.example", False),
        ("127.0.0.1:8484", "", False),
    ],
)
def test_our_own_page_is_told_by_its_address(host, origin, is_ours):
    if is_ours:
        check_order(came_with(host=host, origin=origin))
    else:
        with pytest.raises(NotAllowedError, match="may give orders"):
            check_order(came_with(host=host, origin=origin))


@pytest.mark.parametrize("key", [False, True])
def test_names_that_are_allowed_and_no_others(with_stack, key):
    async def test(stack):
        carried = bearing((await a_standing_key(stack, "ci")).secret) if key else []
        for host, status in (
            (b"gate.example", 200),
            (b"GATE.example:8484", 200),
            (b"a.internal", 200),
            (b"127.0.0.1", 200),
            (b"[::1]:1", 200),
            (b"evil.example", 403),
            (b"gate.example.evil.example", 403),
            (b"internal", 403),
        ):
            for method, path, body in ASKED:
                got = await named(stack, host, method, path, body, carried)
                assert got == status, (host, path)

    with_stack(test, server='allowed_hosts = ["gate.example", "*.internal"]')


async def named(stack, host, method, path, body, headers):
    """Ask under a name: our client sends the address it connects to, so this is written by hand."""
    origin, _ = parse_url(stack.url)
    reader, writer = await asyncio.open_connection(origin.host, origin.port)
    lines = [b"%b: %b\r\n" % each for each in headers]
    head = b"%b %b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\nconnection: close\r\n%b\r\n"
    writer.write(head % (method.encode(), path.encode(), host, len(body), b"".join(lines)) + body)
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ")[1])


def test_an_unknown_name_reaches_nothing_without_a_key(with_stack):
    async def test(stack):
        for host in (b"evil.example", b"evil.example:80", b"127.0.0.1.evil.example", b"10.0.0.5", b""):
            for method, path, body in (*ASKED, ("GET", "/metrics", b"")):
                assert await named(stack, host, method, path, body, []) == 403, (host, path)
        assert sum(group.attempts for group in await stack.house.manager.usage(UsageQuery())) == 0

    with_stack(test)


def test_every_answer_of_ours_is_guarded_and_open_to_no_page(with_stack):
    async def test(stack):
        page = [(b"origin", b"http://localhost:3000"), (b"access-control-request-method", b"POST")]
        for method, path, status in (
            ("GET", "/api/v1/usage", 200),
            ("GET", "/api/v1/nope", 404),
            ("OPTIONS", "/api/v1/usage", 405),
            ("OPTIONS", "/api/v1/scheduler", 405),
            ("OPTIONS", "/v1/messages", 405),
            ("GET", "/healthz", 200),
            ("GET", "/", 200),
            ("GET", "/metrics", 200),
            ("GET", "/nope", 404),
            ("POST", "/v1/messages", 400),
        ):
            got, headers, _ = await stack.send(method, path, headers=page)
            assert got == status, path
            assert dict(GUARDED).items() <= headers.items(), path
            assert not [name for name in headers if name.startswith(b"access-control-")], path

    with_stack(test)


def test_a_providers_leave_to_read_is_not_passed_on(with_stack):
    """OpenAI's answers say who may read them; through a gateway that is for the gateway to say."""

    async def provider(scope, receive, send):
        headers = [
            (b"content-type", b"application/json"),
            (b"Access-Control-Allow-Origin", b"*"),
            (b"access-control-expose-headers", b"x-request-id"),
            (b"x-kept", b"yes"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"id":"m","usage":{"input_tokens":1,"output_tokens":1}}'})

    async def test(stack):
        for method, path, body in (ASKED[1], ("GET", "/v1/models", b""), ("GET", "/v1/files", b"")):
            status, headers, _ = await stack.send(method, path, body, [(b"origin", b"http://localhost:3000")])
            assert (status, headers[b"x-kept"]) == (200, b"yes")
            assert not [name for name in headers if name.startswith(b"access-control-")], path

    with_stack(test, app=provider)
