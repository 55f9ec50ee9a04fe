"""The OpenAI Chat Completions endpoint: request, answer and stream.

One rule: a stream tells its usage only to those who asked with `stream_options.include_usage`, in a last chunk without
choices before `[DONE]`.
"""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from headgate.testing.provider.answers import Fragment, Part, token_count
from headgate.testing.provider.asked import Asked, OfferedTool, PromptBlock, RejectedError, seed_of
from headgate.testing.provider.counting import Usage
from headgate.testing.provider.dialect import Reply
from headgate.testing.provider.openai_wire import OpenAIVendor, decode, function_tool, malformed_event

__all__ = ["OpenAIChat"]

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_STOPS = {"end": "stop", "tool": "tool_calls", "length": "length"}

_encode = msgspec.json.encode


class _ContentPart(Struct):
    type: str = ""
    text: str = ""


class _Function(Struct):
    name: str = ""
    description: str | None = None
    arguments: str = ""
    parameters: Raw = Raw(b"")


class _ToolCall(Struct):
    id: str = ""
    function: _Function | None = None


class _Tool(Struct):
    type: str = "function"
    function: _Function | None = None


class _Message(Struct):
    role: str
    content: str | list[_ContentPart] | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None


class _StreamOptions(Struct):
    include_usage: bool = False


class _NamedChoice(Struct):
    function: _Function | None = None


class _Body(Struct):
    model: str
    messages: list[_Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _NamedChoice | None = None


_BODY = msgspec.json.Decoder(_Body)


class OpenAIChat:
    """`POST /v1/chat/completions`."""

    def __init__(self) -> None:
        self.vendor = OpenAIVendor()

    def read(self, body: bytes) -> Asked:
        """Decode and check a request."""
        asked = decode(_BODY, body)
        assert isinstance(asked, _Body)
        if not asked.messages:
            raise RejectedError(400, "'messages' must contain at least one message.", param="messages")
        max_tokens = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
        if max_tokens is not None and max_tokens < 1:
            raise RejectedError(400, f"max_tokens is {max_tokens}; expected 1 or more", param="max_tokens")
        _check_tool_calls(asked.messages)
        blocks = [_tool_block(tool) for tool in asked.tools or ()]
        blocks += [_message_block(message) for message in asked.messages]
        last = asked.messages[-1]
        return Asked(
            model=asked.model,
            stream=bool(asked.stream),
            max_tokens=max_tokens,
            prompt_tokens=max(1, token_count(sum(block.characters for block in blocks))),
            blocks=blocks,
            seed=seed_of(asked.model, _text(last), len(asked.messages)),
            tools=tuple(
                OfferedTool(tool.function.name, bytes(tool.function.parameters))
                for tool in asked.tools or ()
                if tool.function is not None
            ),
            tool_choice=_choice(asked.tool_choice),
            ends_with_question=last.role == "user",
            include_usage=asked.stream_options is not None and asked.stream_options.include_usage,
        )

    def document(self, reply: Reply) -> bytes:
        """Write the whole completion."""
        message: dict[str, Any] = {"role": "assistant", "content": _content(reply.answer.parts), "refusal": None}
        calls = [_call(part, part.text) for part in reply.answer.parts if part.kind == "tool_call"]
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _STOPS[reply.answer.stop]}
        document = _envelope(reply, "chat.completion", [choice])
        if not reply.hides_usage:
            document["usage"] = _usage(reply.usage)
        return _encode(document)

    def opening(self, reply: Reply) -> bytes:
        """Write the chunk that names the role."""
        return _chunk(reply, {"role": "assistant", "content": "", "refusal": None})

    def fragment(self, reply: Reply, fragment: Fragment) -> bytes:
        """Write a delta."""
        part = fragment.part
        if part.kind != "tool_call":
            return _chunk(reply, {"content": fragment.text})
        position = sum(earlier.kind == "tool_call" for earlier in reply.answer.parts[: fragment.part_index])
        if fragment.starts:
            return _chunk(reply, {"tool_calls": [{"index": position, **_call(part, fragment.text)}]})
        return _chunk(reply, {"tool_calls": [{"index": position, "function": {"arguments": fragment.text}}]})

    def closing(self, reply: Reply) -> bytes:
        """Write the reason to stop, the usage if it was asked for, and `[DONE]`."""
        told = _chunk(reply, {}, _STOPS[reply.answer.stop])
        if reply.asked.include_usage and not reply.hides_usage:
            told += _data({**_envelope(reply, "chat.completion.chunk", []), "usage": _usage(reply.usage)})
        return told + b"data: [DONE]\n\n"

    def malformed(self) -> bytes:
        """Write a chunk that ends in the middle."""
        return malformed_event()

    def failure(self, reply: Reply) -> bytes:
        """Write the error that ends a stream in the middle."""
        message = "The server had an error while processing your request."
        return b"data: " + self.vendor.error(500, message, reply.request_id) + b"\n\n"


def _check_tool_calls(messages: list[_Message]) -> None:
    owed: list[str] = []
    for index, message in enumerate(messages):
        if message.role not in _ROLES:
            raise RejectedError(
                400,
                f"Invalid value: {message.role!r}. Supported values are: {_ROLES}.",
                param=f"messages[{index}].role",
            )
        if message.role == "tool":
            if message.tool_call_id not in owed:
                raise RejectedError(
                    400,
                    "Invalid parameter: messages with role 'tool' must be a response to a preceding message with "
                    "'tool_calls'.",
                    param=f"messages[{index}].role",
                )
            owed.remove(message.tool_call_id)
            continue
        if owed:
            break
        owed = [call.id for call in message.tool_calls or ()]
    if owed:
        raise RejectedError(
            400,
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(owed)}",
            param="messages",
        )


def _text(message: _Message) -> str:
    if isinstance(message.content, list):
        return "".join(part.text for part in message.content)
    return message.content or ""


def _message_block(message: _Message) -> PromptBlock:
    text = _text(message)
    calls = tuple(
        (call.id, call.function.name, call.function.arguments) for call in message.tool_calls or () if call.function
    )
    characters = len(text) + sum(len(name) + len(arguments) for _, name, arguments in calls)
    return PromptBlock(characters, (message.role, text, message.tool_call_id, calls))


def _tool_block(tool: _Tool) -> PromptBlock:
    function = tool.function or _Function()
    return function_tool(function.name, function.description, bytes(function.parameters))


def _choice(choice: str | _NamedChoice | None) -> str:
    if isinstance(choice, _NamedChoice):
        return choice.function.name if choice.function else "auto"
    return {"required": "any", "none": "none"}.get(choice or "auto", "auto")


def _content(parts: tuple[Part, ...]) -> str | None:
    return "".join(part.text for part in parts if part.kind == "text") or None


def _call(part: Part, arguments: str) -> dict[str, Any]:
    return {"id": f"call_{part.id}", "type": "function", "function": {"name": part.name, "arguments": arguments}}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _envelope(reply: Reply, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "chatcmpl-" + reply.request_id.removeprefix("req_"),
        "object": kind,
        "created": reply.created_s,
        "model": reply.asked.model,
        "choices": choices,
        "system_fingerprint": None,
    }


def _chunk(reply: Reply, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    chunk = _envelope(reply, "chat.completion.chunk", [choice])
    if reply.asked.include_usage:
        # The vendor sends the field on every chunk once it was asked for: null until the last one.
        chunk["usage"] = None
    return _data(chunk)


def _data(chunk: dict[str, Any]) -> bytes:
    return b"data: " + _encode(chunk) + b"\n\n"
