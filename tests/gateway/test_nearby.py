"""A gateway that needs no key, and web pages that would spend its owner's."""

import json
import socket

import pytest

from headgate.adapters.config import load_config
from headgate.adapters.server import run
from headgate.cli.serving import gateway_of
from headgate.compose import open_house
from headgate.core.errors import ConfigError
from headgate.core.ledger import UsageQuery
from headgate.gateway.exchange import HttpExchange
from headgate.gateway.nearby import check_nearby
from headgate.runtime.keys import NotAllowedError, make_key

GOOD = b'{"model":"claude-opus-4-6","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'
PAGE = [(b"origin", b"https://evil.example"), (b"content-type", b"text/plain")]


def came_with(**headers: str) -> HttpExchange:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"method": "POST", "path": "/v1/messages", "query_string": b"", "headers": raw}
    return HttpExchange.of(scope, None, None)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "127.0.0.1:8484"},
        {"host": "127.8.9.1"},
        {"host": "LocalHost:8484"},
        {"host": "[::1]:8484"},
        {"host": "localhost", "origin": "http://localhost:3000"},
        {"host": "127.0.0.1:8484", "origin": "http://[::1]:8484"},
    ],
)
def test_programs_and_pages_of_this_machine_pass(headers):
    check_nearby(came_with(**headers))


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8484"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost.evil.example:8484"},
        {"host": "127.0.0.1@evil.example"},
        {"host": "[::2]:8484"},
        {"host": "10.0.0.5:8484"},
        {"host": ""},
        {"host": "[::1"},
        {"host": "127.0.0.1:8484", "origin": "https://evil.example"},
        {"host": "127.0.0.1:8484", "origin": "null"},
        {"host": "127.0.0.1:8484", "origin": "http://127.0.0.1.evil.example"},
    ],
)
def test_names_and_pages_from_elsewhere_do_not(headers):
    with pytest.raises(NotAllowedError, match="headgate keys create"):
        check_nearby(came_with(**headers))


def test_a_page_from_elsewhere_cannot_spend_the_owners_key(with_stack):
    async def test(stack):
        for path in ("/v1/messages", "/v1/chat/completions", "/api/v1/usage"):
            method = "GET" if path.startswith("/api") else "POST"
            status, _, answer = await stack.send(method, path, GOOD if method == "POST" else b"", PAGE)
            assert status == 403
            error = json.loads(answer)["error"]
            assert "evil.example" in error["message"]
            assert error["type"] == ("invalid_request_error" if path == "/v1/chat/completions" else "permission_error")
        assert sum(group.attempts for group in await stack.house.manager.usage(UsageQuery())) == 0
        assert (await stack.send("POST", "/v1/messages", GOOD))[0] == 200

    with_stack(test)


def test_a_page_with_a_key_is_asked_for_nothing_more(with_stack):
    async def test(stack):
        # A gateway that is open to its machine, and has an administrator: only who has the token is one.
        assert (await stack.send("GET", "/api/v1/usage", b"", [*PAGE, (b"x-api-key", b"any")]))[0] == 403
        assert (await stack.send("POST", "/v1/messages", GOOD, PAGE))[0] == 403
        admin = [*PAGE, (b"x-api-key", b"sk-planted-provider-secret")]
        assert (await stack.send("GET", "/api/v1/usage", b"", admin))[0] == 200
        key = make_key("page", stack.house.clock.now_s())
        await stack.house.manager.keys.add([key.stored])
        assert (await stack.send("POST", "/v1/messages", GOOD, [*PAGE, (b"x-api-key", key.secret.encode())]))[0] == 200

    with_stack(test, server='admin_token = "env:PROVIDER_KEY"')


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_gateway_does_not_call_itself(tmp_path, host):
    """One call spent 50 requests in 5 s, and taught the account a limit that it has not."""
    with socket.socket() as plug:
        plug.bind(("127.0.0.1", 0))
        port = plug.getsockname()[1]
    path = tmp_path / "headgate.toml"
    path.write_text(
        f'[[account]]\nname = "main"\nprovider = "anthropic"\nbase_url = "http://{host}:{port}/v1"\napi_key = "env:KEY"'
    )

    async def main():
        async with open_house(load_config(path, {"KEY": "k"})) as house:
            with pytest.raises(ConfigError, match=r"account main: base_url .* is where this gateway itself listens"):
                async with gateway_of(house, "127.0.0.1", port):
                    pass
            async with gateway_of(house, "127.0.0.1", 0):
                pass

    run(main())
