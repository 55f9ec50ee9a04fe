"""Prefixes of prompts: equal where prompts begin alike, up to where a mark stands, wherever the fields stand."""

import json
from typing import Any

import pytest

from headgate.adapters.providers.prefix import prompt_marks
from headgate.core.warm_up import LEAST_BYTES

MARK = {"cache_control": {"type": "ephemeral"}}
MARK_1H = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
LONG = "word" * 1_500


def text(words: str, mark: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "text", "text": words, **(mark or {})}


def body(*blocks: dict[str, Any], **members: Any) -> bytes:
    messages = [{"role": "user", "content": list(blocks) or "hi"}]
    return json.dumps({"model": "claude-x", "messages": messages, **members}).encode()


def keys(raw: bytes) -> list[int]:
    return [mark.key for mark in prompt_marks(raw)]


def test_a_prefix_ends_at_its_mark():
    one, other = body(text(LONG, MARK), text("a?")), body(text(LONG, MARK), text("b?"))
    assert len(keys(one)) == 1
    assert keys(one) == keys(other)
    assert keys(one) != keys(body(text(LONG + "x", MARK), text("a?")))


def test_tools_and_system_come_first_wherever_they_stand():
    tools, system = [{"name": "t", "description": LONG}], [text("S", MARK)]
    first = body(tools=tools, system=system)
    last = json.dumps({"system": system, "messages": [], "tools": tools, "model": "claude-x"}).encode()
    assert keys(first) == keys(last) != []
    assert keys(first) != keys(body(tools=[{"name": "u", "description": LONG}], system=system))


def test_whose_words_they_are_is_part_of_a_prefix():
    question = body(text(LONG, MARK))
    assert keys(question) != keys(question.replace(b'"user"', b'"assistant"')) != []


def test_another_model_has_another_cache():
    assert keys(body(text(LONG, MARK))) != keys(body(text(LONG, MARK), model="claude-y"))


def test_every_mark_is_a_prefix_with_its_own_size_and_life():
    raw = body(
        text(LONG, MARK), text("q", MARK), tools=[{"name": LONG, **MARK_1H}], system=[text("x"), text("s", MARK_1H)]
    )
    marks = prompt_marks(raw)
    assert [mark.life_s for mark in marks] == [3_600, 3_600, 300, 300]
    assert [mark.size_bytes for mark in marks] == sorted(mark.size_bytes for mark in marks)
    assert marks[0].size_bytes > 6_000
    assert marks[-1].size_bytes < len(raw)


def test_a_conversation_that_goes_on_keeps_the_prefix_of_its_system():
    system = [text(LONG, MARK)]
    first, second = body(text("a", MARK), system=system), body(text("b", MARK), system=system)
    assert keys(first)[0] == keys(second)[0]
    assert keys(first)[1] != keys(second)[1]


def test_the_vendors_own_mark_stands_at_the_end():
    raw = body(text(LONG), cache_control={"type": "ephemeral", "ttl": "1h"})
    assert [(mark.size_bytes > len(LONG), mark.life_s) for mark in prompt_marks(raw)] == [(True, 3_600)]


@pytest.mark.parametrize(
    "raw",
    [
        body(text("x" * (LEAST_BYTES // 2), MARK), text(LONG)),  # too small up to its mark
        body(text(LONG)),
        body(text(LONG + '"cache_control"')),
        b'{"model":"claude-x","messages":"' + LONG.encode() + b'"}',
        b'{"model":"claude-x","messages":[{"content":"' + LONG.encode() + b'"},7,{"cache_control":1}]}',
        b"\xff" * 9_000,
        b'"' + LONG.encode(),
        b"",
    ],
)
def test_what_has_no_mark_or_is_not_understood_has_no_prefix(raw: bytes):
    assert prompt_marks(raw) == ()
