"""Bad input, keys, deadlines and endings: the right shape, nothing counted, nothing left behind."""

import asyncio
import json

import pytest

from headgate.core.ledger import UsageQuery
from headgate.core.scopes import Scopes
from headgate.runtime.calls import Call
from headgate.runtime.keys import make_key
from headgate.testing.provider import Latency, ProviderSettings

GOOD = b'{"model":"claude-opus-4-6","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'
GOOD_CHAT = b'{"model":"gpt-5","messages":[{"role":"user","content":"hi"}]}'
CLAUDE = [(b"anthropic-version", b"2023-06-01")]


async def _until(condition) -> None:
    while not condition():  # noqa: ASYNC110 - what the provider counts has no event
        await asyncio.sleep(0)


async def _nothing_was_counted(stack) -> None:
    assert sum(group.requests for group in await stack.house.manager.usage(UsageQuery())) == 0
    assert stack.provider.usage()["total"]["requests_received"] == 0
    assert all(view.used == view.held == 0 for view in await stack.house.manager.limits())


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error_type", "word"),
    [
        ("POST", "/v1/messages", b"{", 400, "invalid_request_error", "not JSON"),
        ("POST", "/v1/messages", b"[]", 400, "invalid_request_error", "JSON object"),
        ("POST", "/v1/messages", b'{"max_tokens":1}', 400, "invalid_request_error", "model is missing"),
        ("POST", "/v1/messages", b'{"model":"claude-opus-4-6","max_tokens":-1}', 400, "invalid_request_error", "-1"),
        ("POST", "/v1/messages", b'{"model":"llama-9","max_tokens":1}', 404, "not_found_error", "llama-9"),
        ("GET", "/v1/messages", b"", 405, "invalid_request_error", "use POST"),
        ("POST", "/v1/messages", GOOD + b" " * 4096, 413, "request_too_large", "4,096 bytes"),
        ("POST", "/v1/chat/completions", b"{", 400, "invalid_request_error", "not JSON"),
        ("POST", "/v1/chat/completions", b'{"model":"nope"}', 404, "invalid_request_error", "nope"),
        ("GET", "/v1/responses", b"", 405, "invalid_request_error", "use POST"),
        ("POST", "/v2/nothing", b"{}", 404, "invalid_request_error", "/v2/nothing"),
        ("GET", "/api/v1/usage?group_by=colour", b"", 400, "invalid_request_error", "colour"),
        ("GET", "/api/v1/usage?since=yesterday", b"", 400, "invalid_request_error", "yesterday"),
        ("POST", "/api/v1/limits", b"", 405, "invalid_request_error", "use GET"),
    ],
)
def test_bad_input_is_refused_in_the_endpoints_own_shape(with_stack, method, path, body, status, error_type, word):
    async def test(stack):
        got, headers, answer = await stack.send(method, path, body)
        assert got == status
        assert headers[b"content-type"] == b"application/json"
        error = json.loads(answer)
        if path.startswith("/v1/messages"):
            assert error["type"] == "error"
            assert error["request_id"]
        assert error["error"]["type"] == error_type
        assert word in error["error"]["message"]
        await _nothing_was_counted(stack)

    with_stack(test, server="max_body_bytes = 4096", limits='[[limit]]\nscope = "account:*"\nrequests_per_minute = 60')


def test_probes(with_stack):
    async def test(stack):
        assert await stack.send("HEAD", "/") == (200, await _headers(stack), b"")
        assert (await stack.get("/healthz"))["status"] == "ok"
        assert (await stack.get("/readyz"))["status"] == "ok"

    async def _headers(stack):
        return (await stack.send("HEAD", "/"))[1]

    with_stack(test)


def test_once_there_is_a_key_nobody_comes_in_without_one_and_each_sees_its_own(with_stack):
    async def test(stack):
        now_s = stack.house.clock.now_s()
        ours, theirs = make_key("ours", now_s), make_key("theirs", now_s, limits='[{"requests_per_day": 1}]')
        await stack.house.manager.keys.add([ours.stored, theirs.stored])
        for headers in ([], [(b"x-api-key", b"hg-0-0")], [(b"authorization", b"Bearer " + ours.secret[:-1].encode())]):
            status, _, answer = await stack.send("POST", "/v1/messages", GOOD, headers)
            assert status == 401
            assert json.loads(answer)["error"]["type"] == "authentication_error"
        await _nothing_was_counted(stack)
        our_key, their_key = (
            [(b"x-api-key", ours.secret.encode())],
            [(b"Authorization", b"Bearer " + theirs.secret.encode())],
        )
        for _ in range(2):
            assert (await stack.send("POST", "/v1/messages", GOOD, our_key))[0] == 200
        assert (await stack.send("POST", "/v1/chat/completions", GOOD_CHAT, their_key))[0] == 200
        status, headers, answer = await stack.send(
            "POST", "/v1/chat/completions", GOOD_CHAT, [*their_key, (b"x-headgate-max-wait", b"1")]
        )
        assert status == 429
        assert json.loads(answer)["error"]["type"] in {"rate_limit_error", "rate_limit_exceeded", "requests", "tokens"}
        usage = await stack.get("/api/v1/usage?group_by=key", our_key)
        assert [(row["key"], row["requests"]) for row in usage["groups"]] == [("ours", 2)]
        limits = await stack.get("/api/v1/limits", their_key)
        assert [view["scope"] for view in limits["limits"]] == ["key:theirs"]
        assert await stack.house.manager.keys.revoke(ours.stored.id)
        assert (await stack.send("POST", "/v1/messages", GOOD, our_key))[0] == 401
        assert (await stack.send("GET", "/api/v1/usage"))[0] == 401
        assert await stack.house.manager.keys.revoke(theirs.stored.id)
        status, _, _ = await stack.send("POST", "/v1/messages", GOOD, [(b"x-api-key", b"any")])
        assert status == 401, "ending the last key does not open the door"

    with_stack(test, limits='[[limit]]\nscope = "account:*"\nrequests_per_minute = 600')


def test_what_cannot_run_in_time_is_told_at_once_and_the_truth(with_stack):
    async def test(stack):
        assert (await stack.send("POST", "/v1/messages", GOOD, CLAUDE))[0] == 200
        status, headers, answer = await stack.send(
            "POST", "/v1/messages", GOOD, [*CLAUDE, (b"x-headgate-max-wait", b"5")]
        )
        assert status == 429
        assert json.loads(answer)["error"]["type"] == "rate_limit_error"
        assert 50 <= int(headers[b"retry-after"]) <= 61
        assert headers[b"x-should-retry"] == b"true"
        assert (await stack.total())["requests"] == 1

    with_stack(test, limits='[[limit]]\nscope = "account:claude"\nrequests_per_minute = 1')


def test_a_spent_budget_says_that_a_retry_cannot_help(with_stack):
    async def test(stack):
        body = GOOD.replace(b'"max_tokens":9', b'"max_tokens":900000')
        status, headers, answer = await stack.send("POST", "/v1/messages", body, [*CLAUDE, (b"x-headgate-run", b"r")])
        assert status == 429
        assert headers[b"x-should-retry"] == b"false"
        assert b"retry-after" not in headers
        assert "$0.01" in json.loads(answer)["error"]["message"]
        assert stack.provider.usage()["total"]["requests_received"] == 0

    with_stack(test, limits='[[limit]]\nscope = "run:*"\nusd_per_lifetime = 0.01')


@pytest.mark.parametrize(
    ("path", "body", "status", "error_type"),
    [
        ("/v1/messages", GOOD, 529, "overloaded_error"),
        ("/v1/chat/completions", GOOD_CHAT, 503, "server_error"),
    ],
)
def test_who_waits_or_comes_while_it_drains_is_told_when_to_come_again(with_stack, path, body, status, error_type):
    async def test(stack):
        manager = stack.house.manager
        account = "claude" if path == "/v1/messages" else "gpt"
        async with manager.admit(Call("m", scopes=Scopes(account=account))):
            waiting = asyncio.create_task(stack.send("POST", path, body))
            await _until(manager.queue)
            await manager.drain()
            for answered in (await waiting, await stack.send("POST", path, body)):
                got, headers, answer = answered
                error = json.loads(answer)["error"]
                assert (got, error["type"]) == (status, error_type)
                assert "shutting down" in error["message"]
                assert "try again in a moment" in error["message"]
                assert (headers[b"retry-after"], headers[b"x-should-retry"]) == (b"5", b"true")
        assert stack.provider.usage()["total"]["requests_received"] == 0

    with_stack(test, limits='[[limit]]\nscope = "account:*"\nslots = 1')


def test_200_concurrent_calls_against_a_hard_cap_never_pass_it(with_stack):
    """$0.45 for a run; LiteLLM spent $0.60 (wire.md section 5)."""

    async def test(stack):
        body = GOOD.replace(b'"max_tokens":9', b'"max_tokens":300')
        headers = [*CLAUDE, (b"x-headgate-run", b"capped")]
        answers = await asyncio.gather(*(stack.send("POST", "/v1/messages", body, headers) for _ in range(200)))
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 429}
        assert sorted(statuses) == statuses, "first come, first served: none is refused before one that is let in"
        spent = (await stack.total())["cost_micro_usd"]
        assert spent <= 450_000
        view = next(view for view in await stack.house.manager.limits() if view.scope == "run:capped")
        assert (view.used, view.held) == (spent, 0)
        most_of_one = 300 * 25 + 1024 * 7
        assert view.free < most_of_one, "a call was refused that would have fitted"
        assert statuses.count(200) == stack.provider.usage()["total"]["requests_served"]

    with_stack(
        test,
        limits='[[limit]]\nscope = "run:*"\nusd_per_lifetime = 0.45',
        provider=ProviderSettings(latency=Latency(0.02, 1e6)),
    )


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_cancels_upstream_and_leaves_nothing_held(with_stack, stream):
    async def test(stack):
        body = GOOD.replace(b'"max_tokens":9', b'"max_tokens":900,"stream":' + (b"true" if stream else b"false"))
        task = asyncio.create_task(stack.send("POST", "/v1/messages", body, CLAUDE))
        await _until(lambda: stack.provider.usage()["total"]["requests_running"])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await _until(lambda: stack.provider.usage()["total"]["requests_cancelled"])
        await _until(lambda: not stack.house.manager.in_flight())
        (row,) = (await stack.get("/api/v1/usage?group_by=state"))["groups"]
        assert row["state"] == "cancelled"
        assert row["input_tokens"] > 0
        assert sum(view.held for view in await stack.house.manager.limits()) == 0

    limits = '[[limit]]\nscope = "account:claude"\nslots = 1\noutput_tokens_per_minute = 100000'
    with_stack(test, limits=limits, provider=ProviderSettings(latency=Latency(0.01, 50)))


def test_who_does_not_wait_is_not_told_of_less_than_no_time(with_stack):
    """`x-headgate-max-wait: 0` read `the call may wait for -0.000 s`."""

    async def test(stack):
        assert (await stack.send("POST", "/v1/messages", GOOD, CLAUDE))[0] == 200
        waiting = asyncio.create_task(stack.send("POST", "/v1/messages", GOOD, CLAUDE))
        await _until(stack.house.manager.queue)
        for _ in range(20):
            status, _, answer = await stack.send(
                "POST", "/v1/messages", GOOD, [*CLAUDE, (b"x-headgate-max-wait", b"0")]
            )
            assert status == 429
            assert b"-0.000" not in answer
            assert b"may wait for 0.000 s" in answer or b"of the 0.000 s it may" in answer
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    with_stack(test, limits='[[limit]]\nscope = "account:claude"\nrequests_per_minute = 1')


def test_the_queue_shows_who_waits_for_what(with_stack):
    async def test(stack):
        manager = stack.house.manager
        async with manager.admit(Call("claude-opus-4-6", scopes=Scopes(account="claude"))):
            task = asyncio.create_task(
                stack.send("POST", "/v1/messages", GOOD, [*CLAUDE, (b"x-claude-code-agent-id", b"a 1")])
            )
            await _until(manager.queue)
            queue = await stack.get("/api/v1/queue")
            assert queue["lanes"][0]["waiting"] == 1
            (waiting,) = queue["waiting"]
            assert (waiting["agent"], waiting["limit"]) == ("a_1", "account:claude * slots gauge")
        assert (await task)[0] == 200
        assert (await stack.get("/api/v1/queue")) == {"lanes": [], "waiting": []}

    with_stack(test, limits='[[limit]]\nscope = "account:claude"\nslots = 1')


def test_a_key_is_attributed_as_the_configuration_says_whatever_its_headers_claim(with_stack):
    async def test(stack):
        key = make_key("ci", stack.house.clock.now_s(), scopes='{"tags": {"stage": "test"}}')
        await stack.house.manager.keys.add([key.stored])
        headers = [
            (b"x-api-key", key.secret.encode()),
            (b"x-headgate-team", b"somebody-else"),
            (b"x-headgate-tags", b"stage=prod,colour=red"),
            (b"x-headgate-run", b"nightly-run"),
        ]
        assert (await stack.send("POST", "/v1/messages", GOOD, headers))[0] == 200
        (row,) = (await stack.get("/api/v1/usage?group_by=key,team,run", headers))["groups"]
        assert (row["key"], row["team"], row["run"]) == ("ci", "search", "nightly-run")
        scopes = {view.scope for view in await stack.house.manager.limits()}
        assert {"tag:stage=test", "tag:colour=red|key:ci", "key:ci"} <= scopes
        assert "tag:stage=prod" not in scopes

    limits = """
    [[key]]
    name = "ci"
    team = "search"
    requests_per_day = 9
    [[limit]]
    scope = "tag:stage=*"
    requests_per_day = 5
    [[limit]]
    scope = "tag:colour=*"
    requests_per_day = 5
    """
    with_stack(test, limits=limits)


def test_nobody_sees_limits_by_claiming_to_be_somebody(with_stack):
    async def test(stack):
        now_s = stack.house.clock.now_s()
        ours = make_key("ours", now_s, scopes='{"team": "alpha"}')
        theirs = make_key("theirs", now_s)
        await stack.house.manager.keys.add([ours.stored, theirs.stored])
        headers = [(b"x-api-key", ours.secret.encode()), (b"x-headgate-session", b"secret")]
        assert (await stack.send("POST", "/v1/messages", GOOD, headers))[0] == 200
        claims = [(b"x-headgate-team", b"alpha"), (b"x-headgate-session", b"secret")]
        seen = await stack.get("/api/v1/limits", [(b"x-api-key", theirs.secret.encode()), *claims])
        assert seen["limits"] == []
        seen = await stack.get("/api/v1/limits", headers)
        assert [view["scope"] for view in seen["limits"]] == ["session:secret|key:ours", "team:alpha"]

    limits = """
    [[limit]]
    scope = "team:*"
    requests_per_day = 5
    [[limit]]
    scope = "session:*"
    requests_per_day = 5
    """
    with_stack(test, limits=limits)


@pytest.mark.parametrize("kind", ["session", "agent", "run", "team", "tags"])
def test_a_key_cannot_spend_what_another_keys_ids_have_left(with_stack, kind):
    async def test(stack):
        now_s = stack.house.clock.now_s()
        keys = [make_key(name, now_s) for name in ("ours", "theirs")]
        await stack.house.manager.keys.add([key.stored for key in keys])
        our_key, their_key = ((b"x-api-key", key.secret.encode()) for key in keys)
        claim = (f"x-headgate-{kind}".encode(), b"colour=red" if kind == "tags" else b"same")
        at_once = (b"x-headgate-max-wait", b"0")

        async def call(*headers):
            return (await stack.send("POST", "/v1/messages", GOOD, [*headers, at_once]))[0]

        assert [await call(their_key, claim) for _ in range(3)] == [200, 200, 429]
        assert [await call(our_key, claim) for _ in range(3)] == [200, 200, 429]
        if kind in ("session", "agent", "run"):
            rows = (await stack.get(f"/api/v1/usage?group_by={kind}", [our_key]))["groups"]
            assert [(row[kind], row["requests"]) for row in rows] == [("same", 2)]

    scope = "tag:colour=*" if kind == "tags" else f"{kind}:*"
    with_stack(test, limits=f'[[limit]]\nscope = "{scope}"\nrequests_per_day = 2')


def test_all_keys_of_a_run_share_its_budget_and_no_other_key_comes_at_it(with_stack):
    async def test(stack):
        now_s = stack.house.clock.now_s()
        of_run = [make_key(f"r1/{n}.1", now_s, scopes='{"run": "r1", "agent": "a"}', fleet=True) for n in range(2)]
        other = make_key("other", now_s)
        await stack.house.manager.keys.add([key.stored for key in (*of_run, other)])

        async def call(key):
            headers = [(b"x-api-key", key.secret.encode()), (b"x-headgate-run", b"r1"), (b"x-headgate-max-wait", b"0")]
            return (await stack.send("POST", "/v1/messages", GOOD, headers))[0]

        assert [await call(key) for key in (other, of_run[0], of_run[1], of_run[0], other)] == [200, 200, 200, 429, 200]

    with_stack(test, limits='[[limit]]\nscope = "run:*"\nrequests_per_day = 2')


def test_odd_credentials_and_queries_get_an_answer_that_can_be_read(with_stack):
    async def test(stack):
        status, _, _ = await stack.send("GET", "/api/v1/limits", headers=[(b"x-api-key", b"caf\xe9")])
        assert status == 401
        status, _, _ = await stack.send("GET", "/api/v1/usage?" + "&".join(f"a{n}=1" for n in range(30)))
        assert status == 401
        key = [(b"authorization", b"Bearer sk-planted-provider-secret")]
        assert (await stack.send("GET", "/api/v1/usage?" + "&".join(f"a{n}=1" for n in range(30)), headers=key))[
            0
        ] == 400
        assert (await stack.send("GET", "/api/v1/usage", headers=key))[0] == 200

    with_stack(test, server='admin_token = "env:PROVIDER_KEY"')


def test_a_body_that_does_not_tell_its_length_is_bounded_too(with_stack):
    async def test(stack):
        host, _, port = stack.url.removeprefix("http://").partition(":")
        for size, status in ((4096, b"404"), (4097, b"413")):
            body = b'{"model":"llama-9","max_tokens":1}'.ljust(size)
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
            for piece in (body[:3000], body[3000:]):
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            writer.write(b"0\r\n\r\n")
            assert (await reader.readline()).split()[1] == status
            writer.close()
            await writer.wait_closed()

    with_stack(test, server="max_body_bytes = 4096")
