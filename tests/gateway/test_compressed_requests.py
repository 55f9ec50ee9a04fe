"""Requests that go as gzip: what a provider unpacks is what came, and one that does not take it is not asked twice."""

import asyncio
import gzip
import json

import anthropic
import pytest

WORDS = " ".join(f"word{number}" for number in range(400))
ASKED = {"model": "claude-opus-4-6", "max_tokens": 64, "messages": [{"role": "user", "content": WORDS}]}
BODY = json.dumps(ASKED).encode().replace(b'"role"', b'"r\\u006fle"  ')  # what nobody would write again like this
SMALL = b'{"model":"claude-opus-4-6","max_tokens":64,"messages":[]}'
SAID = b'{"type":"message","id":"m","model":"claude-opus-4-6","usage":{"input_tokens":9,"output_tokens":3}}'
GZIP = 'compress_requests = "gzip"'


class Picky:
    """Keeps what it is sent; answers `refusal` to what is packed, and `answer` to what is not."""

    def __init__(self, refusal: int, answer: int = 200) -> None:
        self.got: list[tuple[bytes, bytes]] = []
        self._refusal, self._answer = refusal, answer

    async def __call__(self, scope, receive, send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message.get("more_body", False)
        named = dict(scope["headers"])
        encoding = named.get(b"content-encoding", b"")
        assert int(named[b"content-length"]) == len(body)
        self.got.append((encoding, body))
        status = self._refusal if encoding == b"gzip" else self._answer
        said = SAID if status == 200 else b'{"type":"error","error":{"type":"invalid_request_error","message":"No"}}'
        head = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": said})


async def _post(stack, body: bytes) -> int:
    status, _, _ = await stack.send("POST", "/v1/messages", body, [(b"content-encoding", b"identity")])
    return status


def test_what_the_provider_unpacks_is_what_the_client_sent_and_small_bodies_go_as_they_are(with_stack):
    provider = Picky(200)

    async def test(stack):
        large = BODY.replace(b"word0", b"x" * 400_000)  # beyond what is packed in the loop itself
        for body in (BODY, SMALL, large):
            assert await _post(stack, body) == 200
        (packed, small, packed_large) = provider.got
        assert (packed[0], gzip.decompress(packed[1])) == (b"gzip", BODY)
        assert len(packed[1]) < len(BODY) / 2
        assert small == (b"identity", SMALL)
        assert gzip.decompress(packed_large[1]) == large

    with_stack(test, account=GZIP, app=provider)


def test_without_the_word_nothing_is_compressed(with_stack):
    provider = Picky(200)

    async def test(stack):
        assert await _post(stack, BODY) == 200
        assert provider.got == [(b"identity", BODY)]

    with_stack(test, app=provider)


@pytest.mark.parametrize("refusal", [400, 415])
def test_a_provider_that_does_not_take_it_is_sent_the_call_again_and_none_compressed_any_more(
    with_stack, refusal, caplog
):
    provider = Picky(refusal)

    async def test(stack):
        for _ in range(2):
            assert await _post(stack, BODY) == 200
        assert [encoding for encoding, _ in provider.got] == [b"gzip", b"identity", b"identity"]
        total = await stack.total()
        assert (total["requests"], total["failed"]) == (2, 0)

    with_stack(test, account=GZIP, app=provider)
    (said,) = (record.message for record in caplog.records if "compressed" in record.message)
    assert said.startswith(f"account claude: its provider does not take compressed requests (it answered {refusal});")


def test_a_call_that_is_wrong_in_itself_does_not_end_it(with_stack):
    provider = Picky(400, 400)

    async def test(stack):
        for _ in range(2):
            assert await _post(stack, BODY) == 400
        assert [encoding for encoding, _ in provider.got] == [b"gzip", b"identity"] * 2

    with_stack(test, account=GZIP, app=provider)


def test_an_sdk_and_the_simulated_provider_get_on_with_it(with_stack):
    async def test(stack):
        async with anthropic.AsyncAnthropic(base_url=stack.url, api_key="any", max_retries=0) as client:
            message = await client.messages.create(**ASKED)
            async with client.messages.stream(**ASKED) as stream:
                await stream.get_final_message()
            wrong = {**ASKED, "messages": [*ASKED["messages"], {"role": "nobody", "content": "x"}]}
            with pytest.raises(anthropic.BadRequestError):
                await client.messages.create(**wrong)
        assert message.usage.input_tokens > 400
        truth = stack.provider.usage()["total"]
        assert truth["requests_received"] == 3, "of a provider that has taken it a refusal is its answer"
        assert (await stack.total())["input_tokens"] == truth["input_tokens"]

    with_stack(test, account=GZIP)


def test_a_client_that_leaves_while_it_is_packed_leaves_nothing_behind(with_stack):
    provider = Picky(200)

    async def test(stack):
        sending = asyncio.create_task(_post(stack, BODY.replace(b"word0", b"x" * 4_000_000)))
        while not stack.house.manager.in_flight():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        while stack.house.manager.in_flight():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)

    with_stack(test, account=GZIP, app=provider)
