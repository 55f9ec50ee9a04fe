"""Calls that Headgate does not read: both bodies pass while they come, whatever their size, and limits hold."""

import asyncio
import hashlib
import json
from contextlib import suppress
from dataclasses import replace

import pytest
from conftest import open_stack
from standing_keys import a_standing_key

from headgate.adapters.providers.http import parse_url
from headgate.adapters.server import run

KEY = (b"authorization", b"Bearer whatever")
PIECE = bytes(range(256)) * 256
PIECES = 1_024
"""64 MiB in pieces of 64 KiB: more than the sockets on the way can hold."""

MOST_ON_THE_WAY = 32 * 1024 * 1024


class Store:
    """A provider that keeps nothing but a digest of what it gets, and gives as much back."""

    def __init__(self, status: int = 200, *, answers_early: bool = False) -> None:
        self.status = status
        self.answers_early = answers_early
        self.seen: list[tuple[str, str, list[tuple[bytes, bytes]]]] = []
        self.received = 0
        self.digest = hashlib.sha256()
        self.is_gone = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()

    async def __call__(self, scope, receive, send) -> None:
        query = f"?{scope['query_string'].decode()}" if scope["query_string"] else ""
        self.seen.append((scope["method"], scope["path"] + query, scope["headers"]))
        while not self.answers_early:
            await self.reads.wait()
            message = await receive()
            if message["type"] == "http.disconnect":
                self.is_gone.set()
                return
            self.received += len(message.get("body", b""))
            self.digest.update(message.get("body", b""))
            if not message.get("more_body"):
                break
        head = [(b"content-type", b"application/octet-stream"), (b"x-request-id", b"up_1")]
        await send({"type": "http.response.start", "status": self.status, "headers": head})
        if scope["path"].endswith("/content"):
            for _ in range(PIECES // 2):
                await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        await send({"type": "http.response.body", "body": b'{"id" :"f_1"}'})


async def upload(
    stack, path: str, *, chunked: bool, cut: int | None = None, sent: list[int] | None = None, pieces: int = PIECES
) -> bytes:
    """Send a file piece by piece, over a socket of our own; give the answer. `sent` is told of each piece."""
    origin, _ = parse_url(stack.url)
    reader, writer = await asyncio.open_connection(origin.host, origin.port)
    length = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % (pieces * len(PIECE))
    writer.write(b"POST %b HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer k\r\n" % path.encode())
    writer.write(b"content-type: multipart/form-data; boundary=x\r\nconnection: close\r\n%b\r\n\r\n" % length)
    try:
        for number in range(pieces):
            if number == cut:
                writer.transport.abort()
                return b""
            writer.write(b"%x\r\n%b\r\n" % (len(PIECE), PIECE) if chunked else PIECE)
            await writer.drain()
            if sent is not None:
                sent.append(number)
        if chunked:
            writer.write(b"0\r\n\r\n")
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_passes_while_it_comes_and_is_not_held(with_stack, chunked):
    store = Store()

    async def test(stack):
        store.reads.clear()
        sent: list[int] = []
        sending = asyncio.create_task(upload(stack, "/v1/files?purpose=batch", chunked=chunked, sent=sent))
        on_the_way = -1
        while on_the_way < len(sent) or not sent:
            on_the_way = len(sent)
            for _ in range(1_000):
                await asyncio.sleep(0)
        assert on_the_way * len(PIECE) < MOST_ON_THE_WAY
        store.reads.set()
        answer = await sending
        assert b"200 OK" in answer.split(b"\r\n")[0]
        assert b'{"id" :"f_1"}' in answer
        expected = hashlib.sha256(PIECE * PIECES).digest()
        assert (store.received, store.digest.digest()) == (len(PIECE) * PIECES, expected)
        (row,) = (await stack.get("/api/v1/usage?group_by=endpoint"))["groups"]
        assert (row["endpoint"], row["requests"], row["cost_micro_usd"]) == ("files", 1, 0)
        assert sum(view.held for view in await stack.house.manager.limits()) == 0

    limits = '[[limit]]\nscope = "account:*"\nslots = 2\nusd_per_day = 1\nrequests_per_minute = 60'
    with_stack(test, app=store, limits=limits)


def test_a_large_answer_passes_byte_for_byte(with_stack):
    async def test(stack):
        status, headers, body = await stack.send("GET", "/v1/files/f_1/content", headers=[KEY])
        assert (status, headers[b"x-request-id"]) == (200, b"up_1")
        assert body == PIECE * (PIECES // 2) + b'{"id" :"f_1"}'

    with_stack(test, app=Store())


def test_a_client_that_leaves_in_the_middle_of_its_file_is_noticed_upstream(with_stack):
    store = Store()

    async def test(stack):
        await upload(stack, "/v1/files", chunked=False, cut=PIECES // 2)
        await asyncio.wait_for(store.is_gone.wait(), 10)
        while stack.house.manager.in_flight():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0)
        assert sum(view.held for view in await stack.house.manager.limits()) == 0
        (row,) = (await stack.get("/api/v1/usage?group_by=state"))["groups"]
        assert row["state"] == "cancelled"

    with_stack(test, app=store, limits='[[limit]]\nscope = "account:*"\nslots = 1')


def test_a_provider_that_answers_before_the_file_has_come_is_heard(with_stack):
    async def test(stack):
        with suppress(ConnectionError):  # the rest of the file is not wanted
            answer = await upload(stack, "/v1/files", chunked=False, pieces=4)
            assert b" 413 " in answer.split(b"\r\n")[0]
        (row,) = (await stack.get("/api/v1/usage?group_by=state"))["groups"]
        assert row["state"] == "failed"

    with_stack(test, app=Store(413, answers_early=True))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/responses/r_1?include=x%20y"),
        ("DELETE", "/v1/files/f_1"),
        ("HEAD", "/v1/files/f_1"),
        ("GET", "/v1/something/new?a=1&a=2"),
        ("PUT", "/v1/something"),
    ],
)
def test_what_is_not_known_passes_as_it_is(with_stack, method, path):
    store = Store()

    async def test(stack):
        status, _, _ = await stack.send(
            method, path, headers=[KEY, (b"X-Odd", b"caf\xe9"), (b"accept-encoding", b"br")]
        )
        assert status == 200
        ((seen_method, target, headers),) = store.seen
        assert (seen_method, target) == (method, path)
        assert (b"x-odd", b"caf\xe9") in headers
        assert (b"accept-encoding", b"br") in headers
        assert (b"authorization", b"Bearer sk-planted-provider-secret") in headers
        assert len([name for name, _ in headers if name == b"authorization"]) == 1

    with_stack(test, app=store)


def test_what_costs_nobody_knows_how_much_is_refused_under_a_budget_of_money_alone(with_stack):
    store = Store()

    async def test(stack):
        status, _, answer = await stack.send("POST", "/v1/images/generations", b'{"prompt":"x"}', [KEY])
        assert status == 400
        assert "no price is known" in json.loads(answer)["error"]["message"]
        assert (await stack.send("GET", "/v1/files", headers=[KEY]))[0] == 200
        assert [path for _, path, _ in store.seen] == ["/v1/files"]

    with_stack(test, app=store, limits='[[limit]]\nscope = "account:*"\nusd_per_day = 1')


def test_without_a_budget_what_it_cost_is_unknown_and_not_nothing(with_stack):
    async def test(stack):
        assert (await stack.send("POST", "/v1/images/generations", b'{"prompt":"x"}', [KEY]))[0] == 200
        (row,) = (await stack.get("/api/v1/usage?group_by=endpoint"))["groups"]
        assert (row["endpoint"], row["requests"], row["unknown_cost"]) == ("other", 1, 1)

    with_stack(test, app=Store())


def test_requests_that_pass_meet_the_limits_on_requests(with_stack):
    async def test(stack):
        wait = (b"x-headgate-max-wait", b"0")
        statuses = [(await stack.send("GET", "/v1/files", headers=[KEY, wait]))[0] for _ in range(3)]
        assert statuses == [200, 429, 429]

    with_stack(test, app=Store(), limits='[[limit]]\nscope = "account:*"\nrequests_per_minute = 1')


def test_without_a_key_nothing_passes(with_stack):
    store = Store()

    async def test(stack):
        await a_standing_key(stack, "ci")
        assert (await stack.send("GET", "/v1/files", headers=[KEY]))[0] == 401
        assert store.seen == []

    with_stack(test, app=store)


@pytest.mark.parametrize(
    "path", ["/v1/../admin", "/v1/files/%2e%2e/%2E%2E/admin", "/v1/files/..", "/v1/a%2Fb", "/v1/./x"]
)
def test_a_path_that_leads_elsewhere_does_not_pass(with_stack, path):
    store = Store()

    async def test(stack):
        status, _, answer = await stack.send("GET", path, headers=[KEY])
        assert (status, b"there is no /v1/" in answer) == (404, True)
        assert store.seen == []

    with_stack(test, app=store)


def test_trace_does_not_pass_for_it_would_tell_the_accounts_key(with_stack):
    store = Store()

    async def test(stack):
        status, _, answer = await stack.send("TRACE", "/v1/files", headers=[KEY])
        assert (status, b"TRACE is not passed on" in answer) == (404, True)
        assert store.seen == []

    with_stack(test, app=store)


def test_where_no_account_speaks_its_dialect_a_call_is_told_so(tmp_path):
    """It got no answer at all."""

    async def main():
        async with open_stack(tmp_path, app=Store()) as stack:
            pool = stack.house.manager.pool
            pool._accounts = [each for each in pool._accounts if each.dialect == "anthropic"]
            status, _, answer = await stack.send("GET", "/v1/files", headers=[KEY])
            assert (status, b"no account does" in answer) == (404, True)

    run(main())


def test_who_asks_for_what_is_not_there_is_led_on_but_a_body_is_sent_once(with_stack):
    store = Store(404)

    async def test(stack):
        pool, providers = stack.house.manager.pool, stack.house.manager.providers
        gpt = next(each for each in pool._accounts if each.name == "gpt")
        pool._accounts = [*pool._accounts, replace(gpt, name="gpt2")]
        providers["gpt2"] = providers["gpt"]
        assert (await stack.send("GET", "/v1/responses/r_1", headers=[KEY]))[0] == 404
        assert len(store.seen) == 2
        assert (await stack.send("DELETE", "/v1/files/f_1", b"{}", [KEY]))[0] == 404
        assert len(store.seen) == 3

    with_stack(test, app=store)
