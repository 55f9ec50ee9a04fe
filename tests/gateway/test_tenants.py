"""Tenants: who has one key learns nothing of the other's, on any path that the document has, with any parameter."""

import asyncio
import json
import re

import pytest
from standing_keys import CALL, a_standing_key, bearing
from told_shapes import told

from headgate.adapters.providers.http import parse_url
from headgate.cli.serving import gateway_of
from headgate.core.errors import ConfigError
from headgate.gateway.control import _ROUTES

OTHER = b"zebra"
NAMES = {
    "key": "zebra-key",
    "team": "zebra-team",
    "run": "zebra-run",
    "agent": "zebra-agent",
    "session": "zebra-session",
}
LIMITS = """
[scheduler]
policy = "%s"
[[limit]]
scope = "account:claude"
requests_per_minute = 600
usd_per_day = 100
[[limit]]
scope = "key:*"
usd_per_day = 5
requests_per_minute = 3
[[limit]]
scope = "team:*"
usd_per_day = 50
[[limit]]
scope = "run:*"
usd_per_lifetime = 5
[[limit]]
scope = "agent:*"
usd_per_lifetime = 5
[[limit]]
scope = "session:*"
usd_per_lifetime = 5
[[limit]]
scope = "tag:zebra-tag=*"
usd_per_day = 5
[[limit]]
scope = "team:zebra-team"
requests_per_day = 70
[[key]]
name = "zebra-key"
team = "zebra-team"
tags = { zebra-tag = "zebra-value" }
[[maintenance]]
cron = "30 2 * * *"
duration = "1h"
scope = "key:zebra-key"
"""
ADMIN = [(b"x-api-key", b"hg-admin-token-of-this-test")]
GETS = [(path, item["get"]) for path, item in told()["paths"].items() if "get" in item]
EVERY = [
    (method, re.sub("ID", "0a", route.path).replace("RUN", "r1"), operation)
    for route in _ROUTES
    for method, operation in route.operations.items()
]


def saying(secret, name):
    said = {b"x-headgate-%s" % word.encode(): f"{name}-{word}".encode() for word in ("run", "agent", "session")}
    return [*bearing(secret), *said.items()]


async def live(stack, name):
    """A key with calls done, one that waits, a reservation and a fleet's key: something in every corner."""
    key = await a_standing_key(stack, f"{name}-key")
    for _ in range(2):
        assert (await stack.send("POST", "/v1/messages", CALL, saying(key.secret, name)))[0] == 200
    waiting = asyncio.create_task(stack.send("POST", "/v1/messages", CALL, saying(key.secret, name)))
    while not any(each.key == f"{name}-key" for each in stack.house.manager.queue()):  # noqa: ASYNC110 - no event
        await asyncio.sleep(0)
    wish = {"scope": f"key:{name}-key", "of": "account:claude", "dimension": "requests", "amount": 5, "until": "1h"}
    assert (await stack.send("POST", "/api/v1/reservations", json.dumps(wish).encode(), ADMIN))[0] == 201
    lend = json.dumps({"run": f"{name}-fleet", "agents": [f"{name}-north"]}).encode()
    _, _, answer = await stack.send("POST", "/api/v1/keys", lend, bearing(key.secret))
    return key, json.loads(answer)["keys"][0]["key"], waiting


def questions(run, word=None):
    """Every GET, with the parameters that it needs and, one by one, those that it may have."""
    for path, operation in GETS:
        if "text/event-stream" in operation["responses"]["200"]["content"]:
            continue
        place = path.replace("{run}", run)
        given = operation.get("parameters", [])
        needed = [f"{each['name']}={each['example']}" for each in given if each["required"]]
        kinds = next((each["schema"]["items"]["enum"] for each in given if each["name"] == "group_by"), None)
        asked = [[]]
        if word is None and kinds is not None:
            asked += [[f"group_by={kind}"] for kind in kinds] + [[f"group_by={','.join(kinds)}"]]
        if word is not None:
            asked += [[f"{each['name']}={value}"] for each in given if (value := word(each["name"])) is not None]
        for more in asked:
            query = "&".join([*needed, *more])
            yield f"{place}?{query}" if query else place


def other_of(name):
    def word(parameter):
        if parameter == "scope":
            return f"key:{name}-key,run:{name}-run,team:{name}-team,agent:{name}*,tag:{name}-tag={name}-value"
        return f"{name}-{parameter}" if parameter in NAMES else None

    return word


@pytest.mark.parametrize("policy", ["fifo", "priority", "shortest", "round_robin", "fair", "program", "adaptive"])
def test_a_keys_bearer_hears_nothing_of_another(with_stack, policy):
    async def test(stack):
        other, _, there = await live(stack, "zebra")
        own, lent, here = await live(stack, "horse")
        checked = 0
        for secret in (own.secret, lent):
            for question in questions("horse-run"):
                status, headers, answer = await stack.send("GET", question, headers=bearing(secret))
                assert status == 200, (question, answer)
                assert OTHER not in answer, (question, answer)
                assert OTHER not in b"".join(headers.values())
                checked += 1
            # Who names another's hears what it would of a name that nobody has: not even that there is such a one.
            for named, nobodys in zip(
                questions("zebra-run", other_of("zebra")), questions("ghost-run", other_of("ghost")), strict=True
            ):
                if named == nobodys:
                    continue
                answers = [await stack.send("GET", each, headers=bearing(secret)) for each in (named, nobodys)]
                (status, _, answer), (expected, _, nothing) = answers
                told_of_zebra, told_of_ghost = (
                    re.sub(rb'"(request_id|at|[a-z_]*_at|since|from|until)":"[^"]*"', b"", each).replace(name, b"NAME")
                    for each, name in ((answer, b"zebra"), (nothing, b"ghost"))
                )
                assert (status, told_of_zebra) == (expected, told_of_ghost), named
                checked += 1
        assert checked > 70
        # The owner of the other key is told all that: else nothing was shown here.
        theirs = b""
        for question in questions("zebra-run"):
            theirs += (await stack.send("GET", question, headers=bearing(other.secret)))[2]
        for name in NAMES.values():
            assert name.encode() in theirs, name
        for waiting in (here, there):
            waiting.cancel()

    environ = {"ADMIN": ADMIN[0][1].decode()}
    with_stack(test, limits=LIMITS % policy, server='admin_token = "env:ADMIN"', environ=environ)


@pytest.mark.parametrize(("method", "path", "operation"), EVERY, ids=lambda each: each if isinstance(each, str) else "")
def test_each_role_may_what_the_document_says(with_stack, method, path, operation):
    """Nobody: nothing. A key's bearer: what is not for an administrator alone."""

    async def test(stack):
        key = await a_standing_key(stack, "ci")
        for headers in ([], bearing("hg-0a-wrong"), bearing("wrong"), [(b"authorization", b"Basic aGc6aGc=")]):
            status, _, answer = await stack.send(method, path, headers=headers)
            assert (status, json.loads(answer)["error"]["type"]) == (401, "authentication_error")
        if operation.stream:
            return
        status, _, answer = await stack.send(method, path, headers=bearing(key.secret))
        assert (status == 403) == (operation.only_admin is not None), answer
        status, _, answer = await stack.send(method, path, headers=ADMIN)
        assert status not in {401, 403}, answer

    environ = {"ADMIN": ADMIN[0][1].decode()}
    with_stack(test, server='admin_token = "env:ADMIN"', environ=environ)


def test_metrics_are_an_administrators(with_stack):
    async def test(stack):
        key = await a_standing_key(stack, "ci")
        statuses = [(await stack.send("GET", "/metrics", headers=each))[0] for each in ([], bearing(key.secret), ADMIN)]
        assert statuses == [401, 403, 200]

    environ = {"ADMIN": ADMIN[0][1].decode()}
    with_stack(test, server='admin_token = "env:ADMIN"', environ=environ)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_gateway_that_other_machines_reach_has_a_token_or_does_not_begin(with_stack, host):
    async def test(stack):
        with pytest.raises(ConfigError, match="needs an admin token"):
            async with gateway_of(stack.house, host, 0):
                pass

    with_stack(test)


def test_beyond_loopback_nobody_is_let_in_before_the_first_key_either(with_stack):
    places = [("GET", "/metrics"), ("POST", "/v1/messages"), *((method, path) for method, path, _ in EVERY)]

    async def test(stack):
        async with gateway_of(stack.house, "127.0.0.1", 0, open_to_all=False) as server:
            origin, _ = parse_url(f"http://127.0.0.1:{server.address[1]}")
            for method, path in places:
                for headers in ([], [(b"x-api-key", b"any")], [(b"authorization", b"Bearer ")]):
                    async with stack.http.send(method, origin, path.encode(), headers=headers, body=CALL) as reply:
                        assert reply.status == 401, (method, path)

    environ = {"ADMIN": ADMIN[0][1].decode()}
    with_stack(test, server='admin_token = "env:ADMIN"', environ=environ)
