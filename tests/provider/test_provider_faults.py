"""Faults on demand: each kind does what it says, in process and over TCP."""

import asyncio
import http.client
import json
import logging

import pytest

from headgate.testing.provider import FAULT_KINDS, Faults, Latency, ModelLimits
from headgate.testing.provider.exchange import ConnectionDroppedError
from headgate.testing.virtual_time import run


def with_fault(kind):
    return {"x-provider-fault": kind}


@pytest.mark.parametrize(
    ("kind", "status", "error_type"),
    [
        ("402", 402, "billing_error"),
        ("403", 403, "permission_error"),
        ("429", 429, "rate_limit_error"),
        ("500", 500, "api_error"),
        ("504", 504, "timeout_error"),
        ("529", 529, "overloaded_error"),
    ],
)
def test_a_status_is_answered_in_anthropic_s_shape(client, kind, status, error_type):
    async def scenario():
        return await client().message(headers=with_fault(kind))

    answer = run(scenario())
    assert answer.status == status
    assert answer.json["error"]["type"] == error_type
    assert answer.json["request_id"] == answer.headers["request-id"]


@pytest.mark.parametrize(("kind", "status"), [("403", 403), ("429", 429), ("500", 500), ("504", 504), ("529", 503)])
def test_a_status_is_answered_in_openai_s_shape_which_has_no_529(client, kind, status):
    async def scenario():
        return await client().chat(headers=with_fault(kind))

    answer = run(scenario())
    assert answer.status == status
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_")


def test_a_spent_spend_limit_says_that_no_retry_can_help(client):
    async def scenario():
        caller = client()
        return await caller.message(headers=with_fault("spend-limit")), await caller.chat(
            headers=with_fault("spend-limit")
        )

    anthropic, openai = run(scenario())
    assert (anthropic.status, openai.status) == (429, 429)
    assert anthropic.json["error"]["details"]["error_code"] == "enforced_spend_limit_reached"
    assert openai.json["error"]["code"] == "insufficient_quota"
    assert "retry-after" not in anthropic.headers
    assert anthropic.headers["x-should-retry"] == "false"


def test_an_error_comes_in_the_middle_of_a_stream_after_what_was_produced(client):
    async def scenario():
        caller = client()
        answers = [
            await caller.message(stream=True, headers=with_fault("error-mid")),
            await caller.chat(stream=True, headers=with_fault("error-mid")),
            await caller.call(
                "/v1/responses", {"model": "gpt-5", "input": "Hi", "stream": True}, headers=with_fault("error-mid")
            ),
        ]
        return answers, caller.provider.usage()["total"]

    (message, chat, response), total = run(scenario())
    assert [answer.status for answer in (message, chat, response)] == [200, 200, 200]
    assert message.events[-1]["error"]["type"] == "overloaded_error"
    assert chat.events[-1]["error"]["type"] == "server_error"
    assert response.events[-1]["type"] == "response.failed"
    # 25 tokens in 13 pieces of two: six pieces are out before the middle.
    assert response.events[-1]["response"]["usage"]["output_tokens"] == 12
    assert (total["requests_failed"], total["output_tokens"]) == (3, 36)


def test_a_stream_stalls_and_goes_on(client):
    async def scenario():
        caller = client(latency=Latency(0.0, 10.0, 0.0), faults=Faults(stall_s=30.0))
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        answer = await caller.message(stream=True, headers=with_fault("stall"))
        return answer, loop.time() - begun_s

    answer, took_s = run(scenario())
    assert answer.events[-1]["type"] == "message_stop"
    assert took_s == pytest.approx(30 + 2.5)


def test_a_malformed_event_is_in_the_middle_and_the_rest_follows(client):
    async def scenario():
        caller = client()
        return await caller.message(stream=True, headers=with_fault("malformed-event")), await caller.message(
            headers=with_fault("malformed-event")
        )

    streamed, plain = run(scenario())
    broken = [line for line in streamed.body.decode().splitlines() if line.endswith('{"type":"te')]
    assert len(broken) == 1
    assert b"event: message_stop" in streamed.body
    with pytest.raises(json.JSONDecodeError):
        json.loads(plain.body)
    assert int(plain.headers["content-length"]) == len(plain.body)


def test_usage_is_missing_everywhere_but_counted(client):
    async def scenario():
        caller = client()
        missing = with_fault("missing-usage")
        answers = [
            await caller.message(headers=missing),
            await caller.message(headers=missing, stream=True),
            await caller.chat(headers=missing),
            await caller.chat(headers=missing, stream=True, stream_options={"include_usage": True}),
            await caller.call("/v1/responses", {"model": "gpt-5", "input": "Hi"}, headers=missing),
            await caller.call("/v1/embeddings", {"model": "e", "input": "Hi", "dimensions": 2}, headers=missing),
        ]
        return answers, caller.provider.usage()["total"]

    answers, total = run(scenario())
    assert [answer.status for answer in answers] == [200] * 6
    assert not [answer for answer in answers if b"_tokens" in answer.body.replace(b"max_output_tokens", b"")]
    assert (total["requests_served"], total["output_tokens"]) == (6, 125)


def test_skewed_headers_lie_about_the_time_only(client):
    async def scenario():
        caller = client(limits=(ModelLimits(requests_per_minute=60),), faults=Faults(clock_skew_s=-3_600))
        straight = await caller.message()
        return straight, await caller.message(headers=with_fault("skew"))

    straight, skewed = run(scenario())
    assert skewed.status == 200
    assert straight.headers["anthropic-ratelimit-requests-reset"] == "2027-01-15T08:10:01Z"
    assert skewed.headers["anthropic-ratelimit-requests-reset"] == "2027-01-15T07:10:02Z"


def test_disconnects_in_process_raise_and_leave_the_answer_incomplete(client):
    async def scenario():
        caller = client()
        for kind, stream in (("disconnect-before", False), ("disconnect-mid", False), ("disconnect-mid", True)):
            with pytest.raises(ConnectionDroppedError):
                await caller.message(stream=stream, headers=with_fault(kind))
        return caller.provider.usage()["total"]

    total = run(scenario())
    # Nothing was produced before the first, all before the second, half of the third.
    assert (total["requests_failed"], total["output_tokens"]) == (3, 25 + 12)


def _post(port, *, fault, stream):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    message = {"model": "m", "max_tokens": 90, "stream": stream, "messages": [{"role": "user", "content": "Hi"}]}
    try:
        connection.request("POST", "/v1/messages", json.dumps(message), {"x-provider-fault": fault})
        answer = connection.getresponse()
        parts = b""
        while piece := answer.read1():
            parts += piece
        return parts
    finally:
        connection.close()


def test_disconnects_over_tcp_close_the_connection_without_a_word_in_the_log(serve, caplog):
    served = serve()
    with caplog.at_level(logging.WARNING):
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            _post(served.port, fault="disconnect-before", stream=False)
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            _post(served.port, fault="disconnect-mid", stream=True)
        total = served.provider.usage()["total"]
    assert caplog.records == []
    assert (total["requests_failed"], total["output_tokens"]) == (2, 12)


def test_the_schedule_names_every_nth_call_and_the_dice_are_repeatable(client):
    async def statuses(**faults):
        caller = client(faults=Faults(**faults))
        return [(await caller.message()).status for _ in range(12)]

    assert run(statuses(every={"529": 3})) == [200, 200, 529] * 4
    first = run(statuses(probability={"500": 0.5}, seed=4))
    assert first == run(statuses(probability={"500": 0.5}, seed=4))
    assert {200, 500} == set(first)


def test_faults_can_be_changed_and_read_at_run_time(client):
    async def scenario():
        caller = client()
        told = await caller.call("/_provider/faults", {"every": {"500": 1}, "stall_s": 1.5})
        failed = await caller.message()
        wrong = await caller.call("/_provider/faults", {"every": {"earthquake": 1}})
        garbage = await caller.call("/_provider/faults", b"{")
        still = await caller.message()
        await caller.call("/_provider/reset")
        read = await caller.call("/_provider/faults", method="GET")
        return told, failed, wrong, garbage, still, read, await caller.message()

    told, failed, wrong, garbage, still, read, after_reset = run(scenario())
    assert (told.status, told.json["every"], told.json["stall_s"]) == (200, {"500": 1}, 1.5)
    assert (failed.status, still.status, after_reset.status) == (500, 500, 200)
    assert (wrong.status, garbage.status) == (400, 400)
    assert "earthquake" in wrong.json["error"]["message"]
    assert read.json["every"] == {}


def test_an_unknown_fault_is_named_with_those_that_exist(client):
    async def scenario():
        return await client().message(headers=with_fault("earthquake"))

    answer = run(scenario())
    assert answer.status == 400
    assert all(kind in answer.json["error"]["message"] for kind in FAULT_KINDS)


def test_an_error_comes_behind_a_200(client):
    async def scenario():
        caller = client()
        fault = with_fault("error-200")
        return await caller.message(headers=fault), await caller.message(stream=True, headers=fault)

    plain, streamed = run(scenario())
    assert (plain.status, streamed.status) == (200, 200)
    assert plain.json["error"]["type"] == "api_error"
    assert [event["type"] for event in streamed.events] == ["error"]


def test_what_is_told_of_tokens_is_nonsense_and_the_books_are_right(client):
    async def scenario():
        caller = client()
        fault = with_fault("wrong-usage")
        answers = [await caller.message(headers=fault), await caller.message(stream=True, headers=fault)]
        return answers, caller.provider.usage()["total"]

    (plain, streamed), total = run(scenario())
    assert plain.json["usage"]["output_tokens"] == -5
    assert streamed.events[0]["message"]["usage"]["input_tokens"] == -5
    assert total["output_tokens"] > 0


def test_a_stream_breaks_off_within_an_event(serve, caplog):
    served = serve()
    with pytest.raises(http.client.IncompleteRead) as broken:
        _post(served.port, fault="half-event", stream=True)
    assert not broken.value.partial.endswith(b"\n\n")
    assert served.provider.usage()["total"]["requests_failed"] == 1
