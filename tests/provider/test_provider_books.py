"""The provider's own count: exact for calls that end well, badly, or in the middle."""

import asyncio
import http.client
import json
import time

import pytest

from headgate.testing.provider import Latency, ModelLimits, SimulatedProvider
from headgate.testing.virtual_time import run

SLOW = Latency(first_token_s=1.0, tokens_per_second=10.0, jitter=0.0)
ID = "x-headgate-call-id"


async def ask(caller, path):
    return await caller.call(path, method="GET")


def test_a_call_is_told_by_its_id_while_it_runs_and_after(client):
    async def scenario():
        caller = client(latency=SLOW)
        task = asyncio.create_task(caller.message(stream=True, headers={ID: "call-1"}))
        await asyncio.sleep(2.05)
        running = await ask(caller, "/_provider/calls/call-1")
        answer = await task
        return running.json, (await ask(caller, "/_provider/calls/call-1")).json, answer

    running, done, answer = run(scenario())
    assert (running["state"], running["usage"]["output_tokens"]) == ("running", 10)
    assert done == {
        "state": "done",
        "model": "claude-sonnet-4-5",
        "usage": {
            "input_tokens": 2,
            "cache_read_tokens": 0,
            "cache_write_5m_tokens": 0,
            "cache_write_1h_tokens": 0,
            "output_tokens": 25,
        },
        "request_id": answer.headers["request-id"],
    }


def test_unknown_calls_are_404_and_the_memory_is_bounded(client):
    async def scenario():
        caller = client(calls_remembered=2)
        for number in range(3):
            await caller.message(headers={ID: f"call-{number}"})
        return [(await ask(caller, f"/_provider/calls/call-{number}")).status for number in range(4)]

    assert run(scenario()) == [404, 200, 200, 404]


def test_a_second_request_with_the_same_id_keeps_the_first_in_mind(client):
    async def scenario():
        caller = client()
        for fault in ("529", "500"):
            await caller.message(headers={ID: "call-1", "x-provider-fault": fault})
        await caller.message(headers={ID: "call-1"})
        return (await ask(caller, "/_provider/calls/call-1")).json

    told = run(scenario())
    assert told["state"] == "done"
    assert [(each["state"], each["usage"]["output_tokens"]) for each in told["earlier"]] == [("failed", 0)] * 2
    assert not [each for each in told["earlier"] if "earlier" in each]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_generation_at_once(client, stream):
    async def scenario():
        caller = client(latency=SLOW, limits=(ModelLimits(output_tokens_per_minute=6_000),), mean_output_tokens=100)
        leave = asyncio.Event()
        task = asyncio.create_task(caller.message(stream=stream, headers={ID: "call-1"}, leave=leave))
        await asyncio.sleep(1 + 3.05)
        leave.set()
        await task
        ended_s = asyncio.get_running_loop().time()
        at_once = caller.provider.call("call-1")
        await asyncio.sleep(60)
        return ended_s, at_once, caller.provider.call("call-1"), caller.provider.usage()

    ended_s, at_once, later, usage = run(scenario())
    assert ended_s == pytest.approx(4.05)
    assert at_once == later
    assert (later["state"], later["usage"]["output_tokens"]) == ("cancelled", 30)
    assert usage["buckets"][0]["charged_total"] == usage["total"]["output_tokens"] == 30
    assert usage["total"]["requests_cancelled"] == 1


@pytest.mark.parametrize("latency", [SLOW, Latency.none()])
def test_what_a_leaving_client_received_is_what_was_counted(client, latency):
    async def scenario():
        caller = client(latency=latency, mean_output_tokens=100)
        answer = await caller.message(stream=True, headers={ID: "call-1"}, leave_after_chunks=5)
        return answer, caller.provider.call("call-1")

    answer, told = run(scenario())
    received = "".join(event["delta"]["text"] for event in answer.events if event["type"] == "content_block_delta")
    assert not answer.complete
    assert told["state"] == "cancelled"
    # Without latency the next piece was produced by the time the departure is known.
    assert told["usage"]["output_tokens"] - len(received) // 4 in (0, 5)
    assert 20 <= len(received) // 4 <= 30


def test_a_client_that_leaves_before_the_first_token_used_its_input_only(client):
    async def scenario():
        caller = client(latency=SLOW)
        leave = asyncio.Event()
        task = asyncio.create_task(caller.message(headers={ID: "call-1"}, leave=leave))
        await asyncio.sleep(0.5)
        leave.set()
        await task
        return caller.provider.call("call-1")

    told = run(scenario())
    assert (told["state"], told["usage"]["input_tokens"], told["usage"]["output_tokens"]) == ("cancelled", 2, 0)


def test_over_tcp_a_client_that_hangs_up_stops_the_generation(serve):
    # At this pace the answer would take 200 s.
    served = serve(latency=Latency(0.0, 100.0, 0.0), mean_output_tokens=20_000, deltas_per_stream=10_000)
    body = {"model": "m", "max_tokens": 90_000, "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.request("POST", "/v1/messages", json.dumps(body), {ID: "call-1"})
    answer = connection.getresponse()
    assert b"message_start" in answer.read1()
    answer.close()
    connection.close()
    asking = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    given_up_s = time.monotonic() + 10
    state = "running"
    while state == "running" and time.monotonic() < given_up_s:
        asking.request("GET", "/_provider/calls/call-1")
        told = json.loads(asking.getresponse().read())
        state = told["state"]
    asking.close()
    assert state == "cancelled"
    assert told["usage"]["output_tokens"] < 1_000


def test_a_server_that_stops_cancels_its_calls(client):
    async def scenario():
        caller = client(latency=SLOW)
        task = asyncio.create_task(caller.message(stream=True, headers={ID: "call-1"}))
        await asyncio.sleep(1.55)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return caller.provider.call("call-1")

    told = run(scenario())
    assert (told["state"], told["usage"]["output_tokens"]) == ("cancelled", 4)


def test_received_is_the_sum_of_all_ends_and_every_view_agrees(client):
    async def scenario():
        caller = client(limits=(ModelLimits(requests_per_minute=4),), keys={"main": "sk-test-0001", "ci": "sk-2"})
        await caller.message()
        await caller.chat(max_tokens=50)
        await caller.message(headers={"x-provider-fault": "500"})
        await caller.message(headers={"x-api-key": "sk-2"})
        await caller.message(headers={"x-api-key": "wrong"})
        await caller.call("/v1/messages", b"{")
        leave = asyncio.Event()
        leave.set()
        await caller.message(stream=True, headers={"x-provider-fault": "stall"}, leave=leave)
        await caller.message()
        over_http = (await ask(caller, "/_provider/usage")).json
        assert over_http == json.loads(json.dumps(caller.provider.usage()))
        return over_http

    usage = run(scenario())
    total = usage["total"]
    assert (total["requests_received"], total["requests_served"], total["requests_refused"]) == (8, 3, 1)
    assert (total["requests_failed"], total["requests_cancelled"], total["requests_running"]) == (3, 1, 0)
    assert total["refused_by"] == {"requests": 1}
    assert total["openai_tokens"] == 50
    for view in ("credentials", "models"):
        for name in ("requests_received", "input_tokens", "output_tokens", "requests_failed"):
            assert sum(tally[name] for tally in usage[view].values()) == total[name]
    assert set(usage["credentials"]) == {"main", "ci", "unknown"}
    assert "sk-" not in json.dumps(usage)


def test_keys_are_told_by_their_last_four_characters_only(client):
    async def scenario():
        caller = client()
        for key in ("sk-secret-abcd", "sk-other-abcd", "tiny"):
            await caller.message(headers={"x-api-key": key})
        await caller.call("/v1/embeddings", {"model": "e", "input": "x"}, headers={"authorization": "Bearer sk-b-wxyz"})
        return caller.provider.usage()

    names = set(run(scenario())["credentials"])
    assert names == {"abcd", "abcd~2", "key", "0001"}


def test_reset_forgets_everything_and_a_running_call_disturbs_nothing(client):
    async def scenario():
        caller = client(latency=SLOW, limits=(ModelLimits(requests_per_minute=1),))
        task = asyncio.create_task(caller.message(headers={ID: "call-1"}))
        await asyncio.sleep(1.5)
        assert (await caller.call("/_provider/reset")).status == 200
        await task
        usage = caller.provider.usage()
        return usage, (await ask(caller, "/_provider/calls/call-1")).status, await caller.message()

    usage, status, answer = run(scenario())
    assert usage["total"]["requests_received"] == 0
    assert usage["buckets"] == []
    assert (status, answer.status) == (404, 200)


def test_count_tokens_and_models_spend_nothing(client):
    async def scenario():
        caller = client(limits=(ModelLimits(requests_per_minute=1, input_tokens_per_minute=10),))
        body = {"model": "m", "messages": [{"role": "user", "content": "word" * 100}]}
        counted = [await caller.call("/v1/messages/count_tokens", body) for _ in range(3)]
        await caller.call("/v1/models", method="GET")
        return [answer.json for answer in counted], caller.provider.usage()

    counted, usage = run(scenario())
    assert counted == [{"input_tokens": 100}] * 3
    assert usage["total"]["requests_received"] == 0


def test_nothing_sleeps_without_latency(client):
    async def scenario():
        caller = client()
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        await caller.message(stream=True)
        await caller.message()
        return loop.time() - begun_s

    assert run(scenario()) == 0


def test_an_answer_takes_its_first_token_and_its_pace(client):
    async def scenario(*, stream):
        caller = client(latency=SLOW, mean_output_tokens=50)
        loop = asyncio.get_running_loop()
        await caller.message(stream=stream)
        return loop.time()

    assert run(scenario(stream=True)) == pytest.approx(1 + 5)
    assert run(scenario(stream=False)) == pytest.approx(1 + 5)


def test_an_application_server_may_ask_for_a_lifespan(client):
    async def scenario():
        asked = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]
        told = []

        async def receive():
            return asked.pop()

        async def send(message):
            told.append(message["type"])

        await client().provider({"type": "lifespan"}, receive, send)
        return told

    assert run(scenario()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_fresh_provider_has_an_empty_book():
    usage = SimulatedProvider().usage()
    assert usage["total"]["requests_received"] == 0
    assert usage["credentials"] == {}
