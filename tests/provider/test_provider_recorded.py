"""Recorded sessions: valid conversations in order, and a provider that answers them as they were answered."""

import gzip
import json

import anthropic
import pytest

from headgate.testing.provider.anthropic_request import read_messages
from headgate.testing.provider.recorded import SessionError, load_session
from headgate.testing.provider.recorded_answers import SessionFolder, recorded_answer
from headgate.testing.virtual_time import run

SESSION = "0b1c2d3e"


def said(second, content, **fields):
    return {"t": f"2026-02-01T10:00:{second:02}.000Z", "type": "user", "content": content, **fields}


def answered(second, call, *blocks, usage=(5, 100, 0, 1_000), **fields):
    plain, write_5m, write_1h, read = usage
    told = {
        "input_tokens": plain,
        "cache_creation_input_tokens": write_5m + write_1h,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": write_5m, "ephemeral_1h_input_tokens": write_1h},
        "output_tokens": 1,
    }
    line = {"t": f"2026-02-01T10:00:{second:02}.500Z", "type": "assistant", "id": call, "model": "claude-opus-x"}
    return {**line, "usage": told, "content": list(blocks), **fields}


def text(words):
    return {"type": "text", "text": words}


def use(call_id):
    return {"type": "tool_use", "id": call_id, "name": "Read", "input": {"path": call_id}, "caller": {"type": "direct"}}


def result(call_id, content="done"):
    return {"type": "tool_result", "tool_use_id": call_id, "content": content}


def compacted(second, kind="compact_boundary", **details):
    return {"t": f"2026-02-01T10:00:{second:02}.000Z", "type": "system", "sub": kind, "compact": details}


@pytest.fixture
def record(tmp_path):
    """Give a function that writes a recording, and the folder it goes to."""

    def write(*lines, session=SESSION):
        path = tmp_path / f"{session}.jsonl.gz"
        path.write_bytes(gzip.compress("\n".join(json.dumps(line) for line in lines).encode()))
        return path

    return write


def conversation(turn):
    return [json.loads(bytes(raw)) for raw in turn.messages_before]


def assert_valid(turn):
    body = json.dumps({"model": "m", "max_tokens": 5, "messages": conversation(turn)}).encode()
    read_messages(body)
    assert [message["role"] for message in conversation(turn)] == ["user", "assistant"] * (turn.message_count // 2) + [
        "user"
    ]


TWO_CALLS = (
    said(0, "Fix the gate."),
    answered(1, "msg_1", {"type": "thinking", "thinking": "Hm.", "sig_chars": 40}),
    answered(2, "msg_1", text("I look."), text("\n\n"), use("toolu_1")),
    said(3, [result("toolu_1")]),
    # The second tool of the same call comes after the result of the first.
    answered(4, "msg_1", use("toolu_2")),
    said(6, [result("toolu_2", [text("a"), {"type": "image", "b64_chars": 9}]), text("go on")]),
    answered(9, "msg_2", text("Fixed."), usage=(3, 0, 70, 1_105)),
)


def test_lines_of_one_call_are_one_turn_and_its_usage_counts_once(record):
    session = load_session(record(*TWO_CALLS))
    first, second = session.turns
    assert (session.session_id, first.index, second.index, second.model) == (SESSION, 0, 1, "claude-opus-x")
    assert (first.message_count, second.message_count) == (1, 3)
    assert [block["type"] for block in first.answer_blocks] == ["thinking", "text", "tool_use", "tool_use"]
    usage = second.usage
    assert (usage.input_tokens, usage.cache_write_5m_tokens, usage.cache_write_1h_tokens) == (3, 0, 70)
    assert (usage.cache_read_tokens, usage.prompt_tokens, usage.uncached_tokens) == (1_105, 1_178, 73)
    assert (first.gap_s, second.gap_s) == (0.0, 1.5)
    for turn in session.turns:
        assert_valid(turn)


def test_tool_results_follow_the_calls_they_answer_and_stand_before_text(record):
    second = load_session(record(*TWO_CALLS)).turns[1]
    _, assistant, user = conversation(second)
    assert assistant["content"] == [
        text("I look."),
        {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"path": "toolu_1"}},
        {"type": "tool_use", "id": "toolu_2", "name": "Read", "input": {"path": "toolu_2"}},
    ]
    assert user["content"] == [result("toolu_1"), result("toolu_2", [text("a"), text("[image]")]), text("go on")]


def test_orphans_blanks_subagents_and_synthetic_answers_are_left_out(record):
    lines = (
        said(0, " "),
        said(0, [result("toolu_0")]),
        answered(1, "msg_1", use("toolu_1")),
        said(2, "Stop.", side=True),
        answered(2, "msg_s", text("of a subagent"), side=True),
        answered(3, "msg_x", text("API Error"), model="<synthetic>"),
        answered(4, "msg_2", text("Next.")),
        said(5, [result("toolu_1"), text("late")]),
        answered(6, "msg_3", text("End.")),
    )
    turns = load_session(record(*lines)).turns
    assert len(turns) == 3
    for turn in turns:
        assert_valid(turn)
    assert [message["content"][0]["text"] for message in conversation(turns[2])] == [
        "Continue.",
        "(interrupted)",
        "Continue.",
        "Next.",
        "late",
    ]


def test_after_a_compaction_the_conversation_is_the_summary(record):
    lines = (
        *TWO_CALLS,
        answered(9, "msg_2", use("toolu_3")),
        compacted(10, trigger="auto", preTokens=9),
        said(10, "Summary of all that.", summary=True),
        said(10, [result("toolu_3", "too late")]),
        answered(11, "msg_3", text("On."), use("toolu_9")),
        said(12, [result("toolu_9")]),
        answered(13, "msg_4", text("Done.")),
    )
    turns = load_session(record(*lines)).turns
    assert [turn.message_count for turn in turns] == [1, 3, 1, 3]
    assert conversation(turns[3])[0]["content"] == [text("Summary of all that.")]
    for turn in turns:
        assert_valid(turn)


def test_a_micro_compaction_blanks_old_results_for_later_calls_only(record):
    lines = (
        *TWO_CALLS,
        compacted(10, "microcompact_boundary", compactedToolIds=["toolu_1"]),
        said(11, "And?"),
        answered(12, "msg_3", text("Yes.")),
    )
    turns = load_session(record(*lines)).turns
    assert conversation(turns[1])[2]["content"][0]["content"] == "done"
    cleared = conversation(turns[2])
    assert cleared[2]["content"][0]["content"] == "[Old tool result content cleared]"
    assert cleared[2]["content"][1]["content"] == [text("a"), text("[image]")]


def test_the_turns_of_a_stretch_share_one_conversation(record):
    turns = load_session(record(*TWO_CALLS)).turns
    assert turns[0].messages_before[0] is turns[1].messages_before[0]


def test_system_text_makes_up_for_what_recordings_lack_within_bounds(record):
    session = load_session(record(*TWO_CALLS))
    size = len(session.system_text) + sum(len(bytes(raw)) for raw in session.turns[0].messages_before)
    assert size == 4 * session.turns[0].usage.prompt_tokens
    large = load_session(record(said(0, "Hi"), answered(1, "msg_1", text("a"), usage=(10**6, 0, 0, 0))))
    assert len(large.system_text) == 200 * 1024


def test_a_broken_recording_names_its_file_and_line(record, tmp_path):
    with pytest.raises(SessionError, match=r"0b1c2d3e.jsonl.gz, line 2"):
        load_session(record(said(0, "Hi"), {"type": "assistant"}))
    with pytest.raises(SessionError, match=r"line 2: KeyError"):
        load_session(record(said(0, "Hi"), said(1, [{"type": "text"}])))
    (tmp_path / "plain.jsonl.gz").write_text("not packed")
    with pytest.raises(SessionError, match=r"plain.jsonl.gz"):
        load_session(tmp_path / "plain.jsonl.gz")


def test_a_folder_is_indexed_by_name_parsed_on_first_use_and_bounded(record, tmp_path):
    for name in ("one", "two", "compactions"):
        record(*TWO_CALLS, session=name)
    folder = SessionFolder(tmp_path, sessions_held=1)
    assert list(folder) == ["one", "two"]
    one = folder.session("one")
    assert folder.session("one") is one
    folder.session("two")
    assert folder.session("one") is not one
    assert folder.session("three") is None


def request(turn, **fields):
    return {"model": turn.model, "max_tokens": 8_000, "messages": conversation(turn), **fields}


def test_the_provider_gives_the_recorded_turn_with_its_real_prompt_usage(record, tmp_path, client):
    turns = load_session(record(*TWO_CALLS)).turns

    async def scenario():
        caller = client(sessions=tmp_path)
        header = {"x-claude-code-session-id": f"{SESSION}#replay-7"}
        answers = [await caller.call("/v1/messages", request(turn), headers=header) for turn in turns]
        counted = await caller.call("/v1/messages/count_tokens", request(turns[1]), headers=header)
        return answers, counted.json, caller.provider.usage()["total"]

    (first, second), counted, total = run(scenario())
    assert [block["type"] for block in first.json["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert (first.json["stop_reason"], second.json["stop_reason"]) == ("tool_use", "end_turn")
    assert second.json["content"] == [text("Fixed.")]
    usage = second.json["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (3, 1_105)
    assert usage["cache_creation"] == {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 70}
    assert usage["output_tokens"] == 2
    assert counted == {"input_tokens": 1_178}
    assert (total["input_tokens"], total["cache_write_5m_tokens"], total["cache_write_1h_tokens"]) == (8, 100, 70)
    assert total["output_tokens"] == sum(recorded_answer(turn).tokens() for turn in turns)


def test_turns_with_as_many_messages_are_told_apart_by_their_first_message(record, tmp_path, client):
    lines = (
        *TWO_CALLS,
        compacted(10, trigger="manual"),
        said(10, "Summary.", summary=True),
        answered(11, "msg_3", text("After.")),
    )
    turns = load_session(record(*lines)).turns

    async def scenario():
        caller = client(sessions=tmp_path)
        header = {"x-claude-code-session-id": SESSION}
        marked = [{"role": "user", "content": [{**text("Summary."), "cache_control": {"type": "ephemeral"}}]}]
        after = await caller.call("/v1/messages", request(turns[2], messages=marked), headers=header)
        before = await caller.call("/v1/messages", request(turns[0]), headers=header)
        other = await caller.call(
            "/v1/messages", request(turns[0], messages=[{"role": "user", "content": "?"}]), headers=header
        )
        return after.json, before.json, other.json

    after, before, other = run(scenario())
    assert after["content"] == [text("After.")]
    assert before["content"][1] == text("I look.")
    assert len(other["content"][0]["text"]) == 100


def test_a_broken_recording_is_an_error_of_the_provider_and_not_a_traceback(record, tmp_path, client):
    record({"type": "nonsense"})

    async def scenario():
        header = {"x-claude-code-session-id": SESSION}
        return await client(sessions=tmp_path).message(headers=header)

    answer = run(scenario())
    assert (answer.status, answer.json["error"]["type"]) == (500, "api_error")
    assert "line 1" in answer.json["error"]["message"]


def test_a_recorded_answer_is_cut_at_max_tokens(record, tmp_path, client):
    turns = load_session(record(said(0, "Hi"), answered(1, "msg_1", text("word" * 50)))).turns

    async def scenario():
        header = {"x-claude-code-session-id": SESSION}
        caller = client(sessions=tmp_path)
        return (await caller.call("/v1/messages", request(turns[0], max_tokens=10), headers=header)).json

    answer = run(scenario())
    assert (answer["usage"]["output_tokens"], answer["stop_reason"]) == (10, "max_tokens")
    assert answer["content"] == [text("word" * 10)]


def test_a_recorded_turn_streams_through_the_sdk_and_goes_back_as_the_next_request(record, tmp_path, serve):
    turns = load_session(record(*TWO_CALLS)).turns
    served = serve(sessions=tmp_path)
    with anthropic.Anthropic(base_url=served.url, api_key="sk-test-key-0001", max_retries=0) as sdk:
        headers = {"x-claude-code-session-id": SESSION}
        with sdk.messages.stream(**request(turns[0]), extra_headers=headers) as stream:
            message = stream.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.content[0].signature
    assert message.content[2].input == {"path": "toolu_1"}
    assert message.usage.cache_read_input_tokens == 1_000
