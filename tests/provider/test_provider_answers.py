"""What is answered follows from the request alone, and nonsense is refused as the vendors refuse it."""

import statistics

import pytest

from headgate.testing.provider import Latency, ModelLimits, ProviderSettings
from headgate.testing.provider.answers import Answer, Part, clip, filler, fragments, token_count, write
from headgate.testing.provider.asked import Asked, OfferedTool
from headgate.testing.virtual_time import run


def asked(seed=1, **fields):
    return Asked(model="m", stream=False, max_tokens=None, prompt_tokens=5, blocks=[], seed=seed, **fields)


def test_the_same_request_gets_the_same_answer_from_any_provider(client):
    async def scenario():
        return [(await client(output_sigma=0.8).message("Hello", max_tokens=4_000)).json["content"] for _ in range(2)]

    first, second = run(scenario())
    assert first == second
    # Written out, because two providers in one process would also agree on Python's salted hashes.
    assert first[0]["text"].startswith("Small brings opens valley opens while keeper")


def test_output_tokens_can_be_dictated_and_max_tokens_still_rules(client):
    async def scenario():
        caller = client()
        dictate = {"x-provider-output-tokens": "77"}
        free = await caller.message(max_tokens=1_000, headers=dictate)
        bound = await caller.message(max_tokens=7, headers=dictate)
        wrong = await caller.message(headers={"x-provider-output-tokens": "many"})
        return free.json, bound.json, wrong

    free, bound, wrong = run(scenario())
    assert (free["usage"]["output_tokens"], free["stop_reason"]) == (77, "end_turn")
    assert (bound["usage"]["output_tokens"], bound["stop_reason"]) == (7, "max_tokens")
    assert wrong.status == 400


def test_drawn_lengths_have_the_mean_that_was_asked_for():
    lengths = [
        write(asked(seed), mean_tokens=300, sigma=0.8, call_tools=False, dictated_tokens=None).tokens()
        for seed in range(0, 2**32, 2**32 // 4_000)
    ]
    assert statistics.fmean(lengths) == pytest.approx(300, rel=0.03)
    assert statistics.median(lengths) < 250


@pytest.mark.parametrize("characters", [1, 2, 3, 100, 4_001, 300_000])
def test_filler_has_exactly_the_length_and_no_blanks_at_its_ends(characters):
    text = filler(characters, 12_345)
    assert len(text) == characters
    assert text == text.strip()


def test_fragments_join_to_the_answer_and_end_on_whole_tokens():
    answer = Answer((Part("text", "a" * 101), Part("tool_call", '{"a":1}'), Part("text", "é" * 9)), "tool")
    pieces = list(fragments(answer, 6))
    for index, part in enumerate(answer.parts):
        own = [piece for piece in pieces if piece.part_index == index]
        assert "".join(piece.text for piece in own) == part.text
        assert [piece.starts for piece in own] == [True] + [False] * (len(own) - 1)
        assert [piece.ends for piece in own] == [False] * (len(own) - 1) + [True]
        assert all(len(piece.text) % 4 == 0 for piece in own[:-1])
    assert answer.tokens() == token_count(117)


def test_an_answer_is_cut_at_max_tokens_and_half_a_tool_call_is_left_out():
    answer = Answer((Part("text", "a" * 40), Part("tool_call", "x" * 40, name="tool")), "tool")
    assert clip(answer, 20) is answer
    assert clip(answer, 15) == Answer((Part("text", "a" * 40),), "length")
    assert clip(answer, 5) == Answer((Part("text", "a" * 20),), "length")


def test_tool_arguments_follow_the_schema():
    schema = b"""{"type": "object", "required": ["path", "mode", "lines", "deep", "flag", "maybe", "list", "long"],
        "properties": {"path": {"type": "string"}, "mode": {"enum": ["read", "write"]}, "unused": {"type": "string"},
        "lines": {"type": "integer", "minimum": 3}, "flag": {"type": "boolean"}, "maybe": {"type": ["null", "number"]},
        "deep": {"type": "object", "properties": {"inner": {"anyOf": [{"type": "string", "maxLength": 3}]}}},
        "list": {"type": "array", "items": {"type": "string"}}, "long": {"type": "string", "minLength": 20}}}"""
    question = asked(tools=(OfferedTool("open", schema),))
    answer = write(question, mean_tokens=10, sigma=0, call_tools=True, dictated_tokens=None)
    assert answer.stop == "tool"
    assert answer.parts[-1].text == (
        '{"path":"example path","mode":"read","lines":3,"deep":{"inner":"exa"},"flag":true,"maybe":1,'
        '"list":["example list"],"long":"example long........"}'
    )


@pytest.mark.parametrize(
    ("choice", "willing", "question", "called"),
    [
        ("auto", True, True, True),
        ("auto", False, True, False),
        ("auto", True, False, False),
        ("any", False, False, True),
        ("none", True, True, False),
        ("open", False, True, True),
        ("other", True, True, False),
    ],
)
def test_a_tool_is_called_when_it_is_wanted_or_must_be(choice, willing, question, called):
    request = asked(tools=(OfferedTool("open", b"{}"),), tool_choice=choice, ends_with_question=question)
    answer = write(request, mean_tokens=10, sigma=0, call_tools=willing, dictated_tokens=None)
    assert (answer.stop == "tool") is called


USE = {"type": "tool_use", "id": "toolu_1", "name": "t", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x"}


def assistant(*blocks):
    return {"role": "assistant", "content": list(blocks)}


def user(*blocks):
    return {"role": "user", "content": list(blocks)}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON"),
        (b"[1]", "Expected `object`"),
        (b'{"model": "m", "messages": "Hi", "max_tokens": 5}', "$.messages"),
        (b'{"model": "m", "messages": [], "max_tokens": 5}', "at least one message"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}', "max_tokens: Field required"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 0}', "max_tokens"),
        (b'{"model": "m", "messages": [{"role": "tool", "content": "Hi"}], "max_tokens": 5}', "messages.0.role"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "\xff"}], "max_tokens": 5}', "JSON"),
    ],
)
def test_a_malformed_body_is_a_400_that_names_what_is_wrong(client, body, message):
    async def scenario():
        caller = client()
        return await caller.call("/v1/messages", body), caller.provider.usage()["total"]

    answer, total = run(scenario())
    assert answer.status == 400
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert message in answer.json["error"]["message"]
    assert (total["requests_failed"], total["input_tokens"]) == (1, 0)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([user({"type": "text", "text": " "})], "messages.0.content.0: text content blocks must be non-empty"),
        ([user(), user({"type": "text", "text": "a"})], "messages.0: all messages must have non-empty content"),
        ([user(RESULT)], "messages.0.content.0: unexpected `tool_use_id`"),
        ([user(RESULT | {"content": "x"}), assistant(USE)], "unexpected `tool_use_id`"),
        ([assistant(USE), user({"type": "text", "text": "a"})], "messages.0: `tool_use` ids were found without"),
        ([assistant(USE), user(RESULT), user(RESULT)], "messages.2.content.0: unexpected `tool_use_id`"),
        ([assistant(USE)], "messages.0: `tool_use` ids were found without"),
    ],
)
def test_broken_conversations_are_refused_as_the_api_refuses_them(client, messages, message):
    async def scenario():
        return await client().message(messages=messages)

    answer = run(scenario())
    assert answer.status == 400
    assert message in answer.json["error"]["message"]


def test_blocks_that_are_not_known_pass(client):
    async def scenario():
        odd = [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
            {"type": "document", "source": {"type": "text", "data": "abcd"}},
            {"type": "web_fetch_tool_result", "tool_use_id": "srv_1", "content": {"type": "x", "url": "y"}},
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "a"}]},
        ]
        messages = [user({"type": "text", "text": "a"}), assistant(USE), user(*odd)]
        return await client().message(messages=messages, thinking={"type": "adaptive"}, metadata={"user_id": "u"})

    answer = run(scenario())
    assert answer.status == 200
    assert answer.json["usage"]["input_tokens"] > 1_500


def test_paths_and_methods(client):
    async def scenario():
        caller = client(models=("claude-a",))
        return [
            (await caller.call("/", method="HEAD")).status,
            (await caller.call("/", method="GET")).status,
            (await caller.call("/v1/messages", method="GET")).status,
            (await caller.call("/v1/nothing")).status,
            (await caller.call("/v1/models/claude-a", method="GET")).status,
            (await caller.call("/v1/models/claude-b", method="GET")).status,
        ]

    assert run(scenario()) == [200, 200, 405, 404, 200, 404]


def test_jitter_spreads_latency_evenly_around_its_middle():
    latency = Latency(first_token_s=2.0, tokens_per_second=100.0, jitter=0.25)
    assert [latency.first_wait_s(draw) for draw in (0.0, 0.5, 1.0)] == [1.5, 2.0, 2.5]
    assert [latency.pace(draw) for draw in (0.0, 0.5, 1.0)] == [75.0, 100.0, 125.0]
    assert Latency.none().pace(0.3) == float("inf")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ModelLimits(requests_per_minute=0),
        lambda: ModelLimits(burst_s=-1),
        lambda: Latency(tokens_per_second=0),
        lambda: Latency(jitter=1.0),
        lambda: ProviderSettings(deltas_per_stream=0),
        lambda: ProviderSettings(output_sigma=float("nan")),
    ],
)
def test_wrong_settings_are_refused_with_the_value(wrong):
    with pytest.raises(ValueError, match=r"is .*; expected"):
        wrong()
