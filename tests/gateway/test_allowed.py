"""Keys that may call some models and endpoints only."""

import json

import pytest
from standing_keys import CALL, a_standing_key, bearing

LISTED = '[[key]]\nname = "ci"\nmodels = ["claude-sonnet-*", "text-*"]\nendpoints = ["messages", "embeddings", "files"]'


@pytest.mark.parametrize("by", ["configuration", "key"])
def test_a_key_may_call_what_its_lists_have_and_nothing_else(with_stack, by):
    own = json.dumps({"models": ["claude-sonnet-*", "text-*"], "endpoints": ["messages", "embeddings", "files"]})

    async def test(stack):
        key = await a_standing_key(stack, "ci", **({"scopes": own} if by == "key" else {}))
        other = await a_standing_key(stack, "other")
        opus = CALL.replace(b"claude-sonnet-4-5", b"claude-opus-4-6")
        asked = [
            ("POST", "/v1/messages", CALL, 200, ""),
            ("POST", "/v1/messages", opus, 403, "this key may not call claude-opus-4-6; it may call: claude-sonnet-*"),
            ("POST", "/v1/messages/count_tokens", CALL, 403, "count_tokens); it may call: messages, embeddings, files"),
            ("GET", "/v1/models", b"", 403, "this key may not call /v1/models (models)"),
            ("GET", "/v1/files", b"", 404, ""),
            ("GET", "/v1/batches", b"", 403, "this key may not call /v1/batches (batches)"),
        ]
        for method, path, body, status, told in asked:
            got, _, answer = await stack.send(method, path, body, bearing(key.secret))
            assert got == status, answer
            if told:
                assert told in json.loads(answer)["error"]["message"]
        received = stack.provider.usage()["total"]["requests_received"]
        assert received == 1
        assert (await stack.send("POST", "/v1/messages", opus, bearing(other.secret)))[0] == 200

    with_stack(test, limits=LISTED if by == "configuration" else "")


def test_a_fleets_key_may_call_no_more_than_the_one_it_was_made_under(with_stack):
    async def test(stack):
        parent = await a_standing_key(stack, "ci", scopes=json.dumps({"endpoints": ["messages"]}))
        wanted = json.dumps({"run": "r1", "agents": ["a"], "expires_in_s": 60}).encode()
        status, _, answer = await stack.send("POST", "/api/v1/keys", wanted, bearing(parent.secret))
        assert status in {200, 201}, answer
        secret = json.loads(answer)["keys"][0]["key"]
        assert (await stack.send("POST", "/v1/messages", CALL, bearing(secret)))[0] == 200
        assert (await stack.send("GET", "/v1/models", headers=bearing(secret)))[0] == 403

    with_stack(test)
