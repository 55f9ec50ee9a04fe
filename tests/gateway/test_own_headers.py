"""Headgate's own request headers: what cannot be used is refused by name, and everybody else's go on working."""

import json
from pathlib import Path

import pytest

from headgate.gateway.own_headers import ANSWERED, ASKED

GOOD = b'{"model":"claude-haiku-4-5","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"x-headgate-tags": "foo"}, "x-headgate-tags: 'foo': expected name=value, or up to 10 of them with commas"),
        ({"x-headgate-tags": "a=1,=2"}, "x-headgate-tags: '=2': expected name=value"),
        ({"x-headgate-tags": "a=b c"}, "x-headgate-tags: 'a=b c': expected name=value"),
        ({"x-headgate-tags": "a=1, a=2"}, "x-headgate-tags: 'a' stands there twice"),
        ({"x-headgate-tags": ",".join(f"t{n}=1" for n in range(11))}, "x-headgate-tags: 11 tags; expected"),
        (
            {"x-headgate-agent": "a" * 5_000},
            "x-headgate-agent: '" + "a" * 40 + "...': expected a name of 1 to 200 letters (A to Z), digits and ",
        ),
        (
            {"x-headgate-run": "*"},
            "x-headgate-run: '*': expected a name of 1 to 200 letters (A to Z), digits and . _ - : @",
        ),
        ({"x-headgate-session": "two words"}, "x-headgate-session: 'two words': expected a name"),
        ({"x-headgate-team": "caf\xe9"}, "x-headgate-team: 'caf\\xe9': expected a name"),
        ({"x-headgate-run": ""}, "x-headgate-run is empty; leave it out"),
        ({"x-headgate-class": ""}, "x-headgate-class is empty; leave it out"),
        ({"x-headgate-priority": "1      9"}, "x-headgate-priority: '1      9'; expected a whole number"),
        ({"x-headgate-program-tokens": "0"}, "x-headgate-program-tokens: '0'; expected a whole number from 1 to 1000"),
        ({"x-headgate-program-tokens": "9" * 400}, "x-headgate-program-tokens: '" + "9" * 40 + "'; expected a whole"),
        ({"x-headgate-program-tokens": "\xb2"}, "x-headgate-program-tokens: '\xb2'; expected a whole number"),
        (
            {"x-headgate-prority": "5"},
            "x-headgate-prority: there is no such header; did you mean x-headgate-priority? ",
        ),
        ({"X-Headgate-Budget": "5"}, "x-headgate-budget: there is no such header; known are x-headgate-session, "),
    ],
)
def test_a_header_that_cannot_be_used_is_refused_by_name(with_stack, headers, told):
    """All of these were accepted without a word: the tags were gone, and the run was called `_`."""

    async def test(stack):
        pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        status, _, answer = await stack.send("POST", "/v1/messages", GOOD, pairs)
        message = json.loads(answer)["error"]["message"]
        assert status == 400, message
        assert message.startswith(told)
        assert len(message) < 400
        assert stack.provider.usage()["total"]["requests_received"] == 0

    with_stack(test)


def test_a_header_twice_is_refused(with_stack):
    async def test(stack):
        twice = [(b"x-headgate-run", b"a"), (b"x-headgate-run", b"b")]
        for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions"):
            status, _, answer = await stack.send("POST", path, GOOD, twice)
            assert (status, b"x-headgate-run stands twice" in answer) == (400, True)

    with_stack(test)


def test_what_can_be_used_is_used_and_what_clients_send_of_their_own_goes_on_working(with_stack):
    async def test(stack):
        headers = {
            "x-claude-code-session-id": "a session " + "x" * 300,
            "x-claude-code-agent-id": "an agent",
            "x-stainless-timeout": "600",
            "x-headgate-run": "nightly-7",
            "x-headgate-tags": "kind=simple, stage=a=b,",
            "x-headgate-priority": "-3",
            "x-headgate-class": "batch",
            "x-headgate-max-wait": "5",
            "x-headgate-program-tokens": "250000",
        }
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        status, _, answer = await stack.send("POST", "/v1/messages", GOOD, pairs)
        assert status == 200, answer
        (row,) = (await stack.get("/api/v1/usage?group_by=run,agent,session"))["groups"]
        assert (row["run"], row["agent"], len(row["session"])) == ("nightly-7", "an_agent", 200)

    with_stack(test)


def test_what_our_answers_carry_is_no_reason_to_refuse_a_request(with_stack):
    """A Headgate behind another one gets `x-headgate-call-id` with every call."""

    async def test(stack):
        _, answered, _ = await stack.send("POST", "/v1/messages", GOOD)
        ours = {name.decode() for name in answered if name.startswith(b"x-headgate-")}
        assert ours
        assert ours <= ANSWERED
        assert not ours & ASKED.keys()
        echoed = [(name.encode(), b"x" * 300) for name in ANSWERED]
        assert (await stack.send("POST", "/v1/messages", GOOD, echoed))[0] == 200

    with_stack(test)


def test_the_reference_has_every_header():
    text = (Path(__file__).parents[2] / "docs" / "reference" / "headers.md").read_text(encoding="utf-8")
    assert [name for name in ASKED if f"`{name}`" not in text] == []
    assert [name for name in ANSWERED - {"x-headgate-cache"} if f"`{name}`" not in text] == []
