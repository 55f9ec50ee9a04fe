"""Another model and less effort in a body: only these values change, and nothing is added."""

import json

import pytest

from headgate.adapters.providers.model_change import effort_of, with_model
from headgate.core.errors import CallerError

ODD = (
    b'{ "max_tokens" :  5,\n"model" : "claude-opus-4-6" ,"big":1e400,"messages":[{"role":"user","content":"\\u0068'
    b'\\"model\\":\\"x\\""}],"nested":{"model":"y","reasoning_effort":"high"}}'
)


def test_another_model_changes_its_value_and_not_one_byte_more():
    assert with_model("messages", ODD, "claude-haiku-4-5", "low") == ODD.replace(
        b'"claude-opus-4-6"', b'"claude-haiku-4-5"'
    )
    assert with_model("messages", ODD, "claude-opus-4-6") is ODD


def test_a_name_that_is_escaped_is_found_too():
    body = b'{"\\u006dodel":"gpt-\\u0035","x":1}'
    assert with_model("chat", body, "gpt-5-mini") == b'{"\\u006dodel":"gpt-5-mini","x":1}'


@pytest.mark.parametrize(
    ("endpoint", "before", "effort", "after"),
    [
        ("chat", b'"reasoning_effort" : "high"', "high", b'"reasoning_effort" : "low"'),
        (
            "responses",
            b'"reasoning":{"summary":"auto","effort":"xhigh"}',
            "xhigh",
            b'"reasoning":{"summary":"auto","effort":"low"}',
        ),
        (
            "messages",
            b'"output_config":{"effort":"max","format":null}',
            "max",
            b'"output_config":{"effort":"low","format":null}',
        ),
        (
            "messages",
            b'"thinking":{"type":"enabled", "budget_tokens":4096}',
            "medium",
            b'"thinking":{"type":"enabled", "budget_tokens":1024}',
        ),
        (
            "messages",
            b'"thinking":{"budget_tokens":60000},"output_config":{"effort":"low"}',
            "xhigh",
            b'"thinking":{"budget_tokens":1024},"output_config":{"effort":"low"}',
        ),
    ],
)
def test_effort_is_lowered_where_the_body_has_it(endpoint, before, effort, after):
    frame = b'{"model":"m",%b,"input":"hi"}'
    assert effort_of(endpoint, frame % before) == effort
    assert with_model(endpoint, frame % before, "a-longer-one", "low") == (frame % after).replace(
        b'"m"', b'"a-longer-one"'
    )


@pytest.mark.parametrize(
    ("endpoint", "member"),
    [
        ("chat", b'"reasoning":{"effort":"high"}'),
        ("chat", b'"reasoning_effort":null'),
        ("chat", b'"reasoning_effort":["high"]'),
        ("chat", b'"reasoning_effort":"odd"'),
        ("responses", b'"reasoning":null'),
        ("responses", b'"reasoning":{"summary":"auto"}'),
        ("messages", b'"thinking":{"type":"adaptive"}'),
        ("messages", b'"thinking":{"budget_tokens":1e9}'),
        ("messages", b'"thinking":"on","output_config":[]'),
        ("chat", b'"reasoning_effort":"\xff"'),
    ],
)
def test_effort_is_not_added_where_the_body_says_none(endpoint, member):
    body = b'{"model":"m",%b}' % member
    assert effort_of(endpoint, body) is None
    assert with_model(endpoint, body, "m", "low") is body


def test_less_effort_than_the_rule_allows_stays():
    body = json.dumps({"model": "m", "reasoning_effort": "minimal"}).encode()
    assert effort_of("chat", body) == "minimal"
    assert with_model("chat", body, "m", "medium") is body


def test_a_field_that_comes_twice_is_told():
    with pytest.raises(CallerError, match="comes twice"):
        with_model("chat", b'{"model":"a","model":"b"}', "c")


@pytest.mark.parametrize("body", [b'{"model":"a","reasoning_effort":"high","\xff":1}'])
def test_a_body_that_cannot_be_read_as_a_whole_is_told(body):
    with pytest.raises(CallerError, match="cannot be read"):
        with_model("chat", body, "c")
