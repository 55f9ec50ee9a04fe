"""Last words: what counts as refused for good is what a client is told so, and nothing else."""

import asyncio
import json

import pytest

from headgate.cli.last_words import LastWords

REFUSED = json.dumps({"type": "error", "error": {"type": "rate_limit_error", "message": "limit reached: $1"}}).encode()


async def call(
    words: LastWords, status: int, headers: list[tuple[bytes, bytes]], body: bytes, key: str = "hg-1"
) -> None:
    passed = []

    async def gateway(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body[:10], "more_body": True})
        await send({"type": "http.response.body", "body": body[10:], "more_body": False})

    async def send(message):
        passed.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/messages", "query_string": b""}
    await words.around(gateway)({**scope, "headers": [(b"x-api-key", key.encode())]}, None, send)
    assert b"".join(message.get("body", b"") for message in passed) == body, "the answer goes on as it is"


FOR_GOOD = (b"x-should-retry", b"false")


def test_what_a_key_was_told_is_known_until_a_call_of_its_goes_through():
    async def scene():
        words = LastWords()
        await call(words, 429, [FOR_GOOD], REFUSED)
        assert (words.to("hg-1"), words.to("hg-2")) == ("limit reached: $1", None)
        await call(words, 200, [], b"well", key="hg-2")
        assert words.to("hg-1") == "limit reached: $1"
        await call(words, 200, [], b"well")
        assert words.to("hg-1") is None

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([(b"x-should-retry", b"true")], REFUSED),
        ([FOR_GOOD, (b"retry-after", b"90")], REFUSED),  # too long for a client to sit out, and not for ever
        ([FOR_GOOD, (b"x-headgate-account", b"main")], REFUSED),  # the provider's own word
        ([FOR_GOOD], b"no JSON at all"),
    ],
)
def test_what_may_go_through_later_is_no_last_word(headers, body):
    words = LastWords()
    asyncio.run(call(words, 429, headers, body))
    assert words.to("hg-1") is None
