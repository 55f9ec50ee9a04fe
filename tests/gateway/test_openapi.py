"""The OpenAPI document: it has every route, and what is answered is what it says.

Every other test here checks that too: `Stack.send` holds each answer of the control API against the document.
"""

import asyncio
import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from standing_keys import a_standing_key, bearing
from told_shapes import check_told, operation_at, told

from headgate.gateway.control import PATHS, methods_of
from headgate.testing.provider import Latency, ProviderSettings

ADMIN = [(b"x-api-key", b"hg-admin-token-of-this-test")]
CALL = b'{"model":"claude-sonnet-4-5","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'
STEERED = b'{"policy": "fair", "lanes": [{"scope": "account:*", "policy": "fifo"}]}'
LIMITS = """
[[limit]]
scope = "account:claude"
requests_per_minute = 600
input_tokens_per_minute = 100_000
tokens_per_hour = 1_000_000
slots = 9
[[limit]]
scope = "key:*"
usd_per_day = 5
requests_per_minute = 3
[[limit]]
scope = "run:*"
usd_per_lifetime = 5
[[key]]
name = "ci"
team = "search"
[[maintenance]]
cron = "30 2 * * sun"
duration = "2h"

"""


def templated(path):
    return path.replace("ID", "{id}").replace("RUN", "{run}")


ROUTES = [
    (method, path)
    for path in PATHS
    for method in methods_of(path.replace("ID", "0a").replace("RUN", "r1"))
    if method != "HEAD"
]


def operations():
    for template, item in told()["paths"].items():
        for method in item.keys() - {"parameters"}:
            yield method.upper(), template, item[method]


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=str)
def test_every_route_is_in_the_document(method, path):
    operation = told()["paths"][templated(path)][method.lower()]
    assert operation["summary"]
    assert {"400", "401", "403", "500"} <= set(operation["responses"])


def test_the_document_has_nothing_that_is_not_served():
    found = {(method, template) for method, template, _ in operations()}
    assert found == {(method, templated(path)) for method, path in ROUTES}


def test_the_document_holds_together():
    document = told()
    assert document["openapi"] == "3.1.0"
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(ids) == len(set(ids))
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"], reference


def test_every_operation_answers_as_the_document_says(with_stack):
    async def test(stack):
        key = await a_standing_key(stack, "ci")
        own = bearing(key.secret)
        for _ in range(2):
            assert (await stack.send("POST", "/v1/messages", CALL, [*own, (b"x-headgate-run", b"r1")]))[0] == 200
        waiting = asyncio.create_task(stack.send("POST", "/v1/messages", CALL, own))
        while not stack.house.manager.queue():  # noqa: ASYNC110 - who waits has no event
            await asyncio.sleep(0)
        wish = {"scope": "run:r1", "of": "account:claude", "dimension": "requests", "amount": 5, "until": "1h"}
        seen = set()
        made = {}
        for method, path, body, status in (
            ("GET", "/api/v1/openapi.json", b"", 200),
            ("GET", "/api/v1/usage?group_by=model,key,run,day,rule", b"", 200),
            ("GET", "/api/v1/limits", b"", 200),
            ("GET", "/api/v1/queue", b"", 200),
            ("GET", "/api/v1/status", b"", 200),
            ("GET", "/api/v1/accounts", b"", 200),
            ("GET", "/api/v1/forecast", b"", 200),
            ("GET", "/api/v1/capacity?model=claude-sonnet-4-5", b"", 200),
            ("GET", "/api/v1/budgets", b"", 200),
            ("POST", "/api/v1/reservations", json.dumps(wish).encode(), 201),
            ("GET", "/api/v1/reservations", b"", 200),
            ("DELETE", "/api/v1/reservations/{id}", b"", 200),
            ("PUT", "/api/v1/scheduler", STEERED, 200),
            ("GET", "/api/v1/scheduler", b"", 200),
            ("POST", "/api/v1/reload", b"", 200),
            ("POST", "/api/v1/keys", b'{"run": "r2", "agents": ["north"], "expires_in_s": 60}', 201),
            ("DELETE", "/api/v1/keys/{id}", b"", 200),
            ("GET", "/api/v1/runs/r1/attempts?most=2", b"", 200),
            ("GET", "/api/v1/runs/r1/limits", b"", 200),
        ):
            place = path.replace("{id}", made.get(path.rpartition("/")[0], ""))
            got, _, answer = await stack.send(method, place, body, ADMIN)
            assert got == status, answer
            shape = json.loads(answer)
            if method == "POST" and path == "/api/v1/reservations":
                made[path] = shape["id"]
            elif method == "POST" and path == "/api/v1/keys":
                made[path] = shape["keys"][0]["id"]
            template, _ = operation_at(method, place)
            seen.add((method, template))
            # Choices are made where there are several accounts, and changes where the file says otherwise: elsewhere.
            lists = {name: value for name, value in shape.items() if isinstance(value, list)}
            empty = [name for name, value in lists.items() if not value and name not in {"choices", "changed"}]
            assert not empty, (path, "an empty list shows nothing of its rows")
            if method == "GET":
                await stack.send("GET", place, b"", own)
        waiting.cancel()
        events = {("GET", "/api/v1/events")}
        assert seen | events == {(method, templated(path)) for method, path in ROUTES}

    server = 'admin_token = "env:ADMIN"'
    environ = {"ADMIN": ADMIN[0][1].decode()}
    latency = ProviderSettings(latency=Latency.none())
    with_stack(test, limits=LIMITS, server=server, environ=environ, provider=latency)


def test_an_answer_that_the_document_does_not_have_fails():
    good = {"id": "0a", "ended": True}
    check_told("DELETE", "/api/v1/keys/0a", 200, json.dumps(good).encode())
    for status, body in ((200, {**good, "more": 1}), (200, {"id": "0a"}), (409, good)):
        with pytest.raises(AssertionError):
            check_told("DELETE", "/api/v1/keys/0a", status, json.dumps(body).encode())


def test_the_reference_names_the_types_of_errors_that_the_document_has():
    reference = (Path(__file__).parents[2] / "docs/reference/control-api.md").read_text(encoding="utf-8")
    for kind in told()["components"]["schemas"]["ErrorTold"]["properties"]["type"]["enum"]:
        assert f"`{kind}`" in reference, kind
