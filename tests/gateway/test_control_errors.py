"""Errors of the control API look as its reference says, on every path; a slip of the pen is never a silent answer."""

import json

import pytest

from headgate.gateway.control import PATHS, methods_of

ADMIN = [(b"x-api-key", b"hg-admin-token-of-this-test")]
PLACES = [
    (method, path.replace("ID", "0a").replace("RUN", "r1"))
    for path in PATHS
    for method in methods_of(path.replace("ID", "0a").replace("RUN", "r1"))
    if method != "HEAD"
]


async def refused(stack, method, path, body=b"", headers=None):
    status, _, answer = await stack.send(method, path, body, headers)
    shape = json.loads(answer)
    assert shape["type"] == "error", shape
    return status, shape["error"]["type"], shape["error"]["message"]


def test_every_error_has_the_documented_shape_and_type(with_stack):
    """`curl /api/v1/nope` had OpenAI's shape, and a 401 the type `invalid_request_error`."""

    async def test(stack):
        for method, path, headers, body, expected in (
            ("GET", "/api/v1/nope", None, b"", (404, "not_found_error")),
            ("GET", "/api/v1/limits", None, b"", (401, "authentication_error")),
            ("GET", "/api/v1/limits", [(b"authorization", b"Bearer hg-wrong")], b"", (401, "authentication_error")),
            ("GET", "/api/v1/forecast?scope=planet", ADMIN, b"", (400, "invalid_request_error")),
            ("POST", "/api/v1/reservations", ADMIN, b"{", (400, "invalid_request_error")),
            ("GET", "/api/v1/capacity?model=llama", ADMIN, b"", (404, "not_found_error")),
            ("DELETE", "/api/v1/reservations/0a", ADMIN, b"", (404, "not_found_error")),
            ("DELETE", "/api/v1/limits", ADMIN, b"", (405, "invalid_request_error")),
            ("PUT", "/api/v1/scheduler", ADMIN, b"x" * 70_000, (413, "request_too_large")),
        ):
            assert (await refused(stack, method, path, body, headers))[:2] == expected, path
        too_large = (await refused(stack, "PUT", "/api/v1/scheduler", b"x" * 70_000, ADMIN))[2]
        assert too_large.endswith("larger than the 65,536 bytes that this path takes; send less")
        made = json.loads((await stack.send("POST", "/api/v1/keys", b'{"run": "r", "agents": ["a"]}', ADMIN))[2])
        bearer = [(b"authorization", f"Bearer {made['keys'][0]['key']}".encode())]
        forbidden = await refused(stack, "DELETE", "/api/v1/reservations/0a", headers=bearer)
        assert forbidden[:2] == (403, "permission_error")

    with_stack(test, server='admin_token = "env:ADMIN"', environ={"ADMIN": ADMIN[0][1].decode()})


@pytest.mark.parametrize(("method", "path"), PLACES, ids=" ".join)
def test_an_unknown_parameter_is_an_error_on_every_path(with_stack, method, path):
    """`GET /api/v1/queue?x=1` was a 200."""

    async def test(stack):
        for query in ("x=1", "x", "x="):
            status, kind, message = await refused(stack, method, f"{path}?{query}")
            assert (status, kind) == (400, "invalid_request_error"), message
            assert message.startswith("unknown parameter 'x'; "), message

    with_stack(test)


def test_a_parameter_twice_or_without_a_value_is_an_error(with_stack):
    async def test(stack):
        assert "parameter key has no value" in (await refused(stack, "GET", "/api/v1/usage?key="))[2]
        assert "parameter key stands 2 times" in (await refused(stack, "GET", "/api/v1/usage?key=a&key=b"))[2]

    with_stack(test)
