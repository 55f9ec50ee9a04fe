"""Small requests for embeddings of one key are made as one, where its owner wants that; what each client gets."""

import asyncio
import json

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standing_keys import a_standing_key, bearing

from headgate.adapters.providers.embeddings import inputs_of, joined, parts_of
from headgate.core.ledger import UsageQuery

BATCHES = '[[key]]\nname = "ci"\nbatch_embeddings = true\n[[key]]\nname = "other"\n'


def _body(*inputs, **more) -> bytes:
    return json.dumps(
        {"model": "text-embedding-3-small", "input": inputs[0] if len(inputs) == 1 else inputs, **more}
    ).encode()


async def _alone(stack, key, *bodies):
    """Give the answers to requests that are made one after the other, by a key that does not batch."""
    return [json.loads((await stack.send("POST", "/v1/embeddings", body, bearing(key.secret)))[2]) for body in bodies]


def test_each_gets_its_own_vectors_and_the_tokens_add_up(with_stack):
    async def test(stack):
        ci, other = await a_standing_key(stack, "ci"), await a_standing_key(stack, "other")
        bodies = [_body("a sentence about water"), _body("one", "two"), _body(["a list of one"])]
        alone = await _alone(stack, other, *bodies)
        before = stack.provider.usage()["total"]
        sent = [stack.send("POST", "/v1/embeddings", body, bearing(ci.secret)) for body in bodies]
        answers = await asyncio.gather(*sent)
        after = stack.provider.usage()["total"]
        assert after["requests_served"] - before["requests_served"] == 1
        told = [json.loads(body) for _, _, body in answers]
        assert [each["data"] for each in told] == [each["data"] for each in alone]
        used = after["input_tokens"] - before["input_tokens"]
        assert sum(each["usage"]["prompt_tokens"] for each in told) == used > 0
        assert {status for status, _, _ in answers} == {200}
        assert len({head[b"x-headgate-batched"] for _, head, _ in answers}) == 1
        assert len({head[b"x-headgate-call-id"] for _, head, _ in answers}) == 3
        [ours] = await stack.house.manager.usage(UsageQuery((), only=(("key", "ci"),)))
        assert (ours.requests, ours.input_tokens, ours.attempts) == (1, used, 3)

    with_stack(test, limits=BATCHES)


def test_ten_inputs_go_at_once_and_another_kind_by_itself(with_stack):
    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        same = [_body(f"text {number}") for number in range(20)]
        odd = [_body("text 0", dimensions=8), _body(*[f"many {number}" for number in range(11)])]
        sent = [stack.send("POST", "/v1/embeddings", body, bearing(ci.secret)) for body in [*same, *odd]]
        answers = await asyncio.gather(*sent)
        assert {status for status, _, _ in answers} == {200}
        assert stack.provider.usage()["total"]["requests_served"] == 4
        batched = [head.get(b"x-headgate-batched") for _, head, _ in answers]
        assert len(set(batched[:20])) == 2
        assert batched[20:] == [None, None]

    with_stack(test, limits=BATCHES)


def test_the_official_sdk_reads_its_part(with_stack):
    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=ci.secret, max_retries=0) as sdk:
            model = "text-embedding-3-small"
            one, two = await asyncio.gather(*[sdk.embeddings.create(model=model, input=each) for each in ("a", "b")])
        assert one.data[0].index == two.data[0].index == 0
        assert one.data[0].embedding != two.data[0].embedding
        assert stack.provider.usage()["total"]["requests_served"] == 1

    with_stack(test, limits=BATCHES)


def test_one_input_that_is_refused_does_not_fail_the_others(with_stack):
    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        bodies = [_body("good"), _body("")]
        sent = [stack.send("POST", "/v1/embeddings", body, bearing(ci.secret)) for body in bodies]
        (good, _, body), (bad, _, told) = await asyncio.gather(*sent)
        assert (good, bad) == (200, 400)
        assert json.loads(body)["data"]
        assert "error" in json.loads(told)

    with_stack(test, limits=BATCHES)


def test_a_client_that_leaves_takes_nothing_from_the_others(with_stack):
    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        first, second = [
            asyncio.create_task(stack.send("POST", "/v1/embeddings", _body(word), bearing(ci.secret)))
            for word in ("first", "second")
        ]
        async with asyncio.timeout(10):
            while not any(len(each.inputs) == 2 for each in stack.house.manager.batching._open.values()):  # noqa: ASYNC110 - who waits for a batch has no event
                await asyncio.sleep(0)
        first.cancel()
        status, _, body = await second
        assert status == 200
        assert len(json.loads(body)["data"]) == 1
        assert not stack.house.manager.batching._open

    with_stack(test, limits=BATCHES)


@pytest.mark.parametrize(("most_bytes", "asked"), [(100, 3), (0, 2)])
def test_beyond_what_a_process_holds_each_is_made_by_itself(with_stack, most_bytes, asked):
    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        held = stack.house.manager.coalescing.held
        held.most_bytes = most_bytes
        sent = [stack.send("POST", "/v1/embeddings", _body(word), bearing(ci.secret)) for word in ("a", "b")]
        answers = await asyncio.gather(*sent)
        assert [(status, len(json.loads(body)["data"])) for status, _, body in answers] == [(200, 1), (200, 1)]
        assert stack.provider.usage()["total"]["requests_served"] == asked
        assert held.held_bytes == 0

    with_stack(test, limits=BATCHES)


def test_without_the_word_nothing_is_joined(with_stack):
    async def test(stack):
        other = await a_standing_key(stack, "other")
        sent = [stack.send("POST", "/v1/embeddings", _body(word), bearing(other.secret)) for word in ("a", "b")]
        answers = await asyncio.gather(*sent)
        assert stack.provider.usage()["total"]["requests_served"] == 2
        assert not any(b"x-headgate-batched" in head for _, head, _ in answers)

    with_stack(test, limits=BATCHES)


@pytest.mark.parametrize(
    ("written", "count"),
    [('"a"', 1), ('["a", "b"]', 2), ("[1, 2, 3]", 1), ("[[1, 2], [3]]", 2), ('["\\u00e9", [1]]', 2)],
)
def test_inputs_are_cut_out_and_joined_byte_for_byte(written, count):
    body = f'{{"model": "m" ,"input" : {written}, "user": "u"}}'.encode()
    found = inputs_of(body)
    assert len(found.each) == count
    again = inputs_of(joined(found, found.each))
    assert again.each == found.each
    assert (found.before, found.after) == (b'{"model": "m" ,"input" : ', b', "user": "u"}')


@pytest.mark.parametrize("body", [b"{}", b'{"input": []}', b'{"input": 5}', b'{"input": "a", "input": "b"}'])
def test_what_cannot_be_understood_is_not_joined(body):
    assert inputs_of(body) is None


@given(
    st.lists(st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=4), min_size=1, max_size=6),
    st.integers(0, 10**6),
)
def test_the_parts_of_the_tokens_are_the_whole(inputs, tokens):
    rows = [{"object": "embedding", "index": place, "embedding": [place]} for place in range(sum(map(len, inputs)))]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    body = json.dumps({"object": "list", "data": rows[::-1], "model": "m", "usage": usage}).encode()
    parts = [json.loads(part) for part in parts_of(body, inputs)]
    assert sum(part["usage"]["prompt_tokens"] for part in parts) == tokens
    assert [row["embedding"] for part in parts for row in part["data"]] == [row["embedding"] for row in rows]
    assert all([row["index"] for row in part["data"]] == list(range(len(part["data"]))) for part in parts)


def test_an_answer_that_lacks_a_vector_is_not_cut():
    body = b'{"object":"list","data":[{"index":1,"embedding":[0.10]}],"usage":{"prompt_tokens":1}}'
    assert parts_of(body, [[b'"a"'], [b'"b"']]) is None
    whole = body.replace(b'"index":1', b'"index":0')
    assert b"[0.10]" in parts_of(whole, [[b'"a"']])[0]
