"""The OpenAI Responses endpoint: request, answer and stream, as the SDKs and Codex speak it.

One rule: every event carries its `sequence_number`; the last one (`response.completed` or `response.incomplete`)
carries the usage, and no `[DONE]` follows. Answers are not stored: there is no `GET /v1/responses/{id}`.
"""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from headgate.testing.provider.answers import Fragment, Part, token_count
from headgate.testing.provider.asked import Asked, OfferedTool, PromptBlock, RejectedError, seed_of
from headgate.testing.provider.counting import Usage
from headgate.testing.provider.dialect import Reply
from headgate.testing.provider.openai_wire import OpenAIVendor, decode, function_tool, malformed_event

__all__ = ["OpenAIResponses"]

_encode = msgspec.json.encode


class _ContentPart(Struct):
    type: str = ""
    text: str = ""


class _Item(Struct):
    """A message, a tool call or its output; what is not known counts by its text only."""

    type: str = "message"
    role: str = ""
    content: str | list[_ContentPart] | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str | list[_ContentPart] | None = None


class _Tool(Struct):
    type: str
    name: str = ""
    description: str | None = None
    parameters: Raw = Raw(b"")


class _NamedChoice(Struct):
    name: str = ""


class _Body(Struct):
    model: str
    input: str | list[_Item]
    instructions: str | None = None
    max_output_tokens: int | None = None
    stream: bool | None = False
    tools: list[_Tool] | None = None
    tool_choice: str | _NamedChoice | None = None
    previous_response_id: str | None = None


_BODY = msgspec.json.Decoder(_Body)


class OpenAIResponses:
    """`POST /v1/responses`."""

    def __init__(self) -> None:
        self.vendor = OpenAIVendor()

    def read(self, body: bytes) -> Asked:
        """Decode and check a request."""
        asked = decode(_BODY, body)
        assert isinstance(asked, _Body)
        items = [_Item(role="user", content=asked.input)] if isinstance(asked.input, str) else asked.input
        if not items:
            raise RejectedError(400, "'input' must contain at least one item.", param="input")
        if asked.max_output_tokens is not None and asked.max_output_tokens < 1:
            raise RejectedError(
                400, f"max_output_tokens is {asked.max_output_tokens}; expected 1 or more", param="max_output_tokens"
            )
        if asked.previous_response_id is None:
            _check_outputs(items)
        blocks = [function_tool(tool.name, tool.description, bytes(tool.parameters)) for tool in asked.tools or ()]
        if asked.instructions:
            blocks.append(PromptBlock(len(asked.instructions), ("system", asked.instructions)))
        blocks += [_item_block(item) for item in items]
        last = items[-1]
        return Asked(
            model=asked.model,
            stream=bool(asked.stream),
            max_tokens=asked.max_output_tokens,
            prompt_tokens=max(1, token_count(sum(block.characters for block in blocks))),
            blocks=blocks,
            seed=seed_of(asked.model, _text(last.content) + _text(last.output), len(items)),
            tools=tuple(
                OfferedTool(tool.name, bytes(tool.parameters)) for tool in asked.tools or () if tool.type == "function"
            ),
            tool_choice=_choice(asked.tool_choice),
            ends_with_question=last.role == "user",
        )

    def document(self, reply: Reply) -> bytes:
        """Write the whole response."""
        return _encode(_response(reply, finished=True))

    def opening(self, reply: Reply) -> bytes:
        """Write `response.created` and `response.in_progress`."""
        response = _response(reply, finished=False)
        return _event(reply, "response.created", {"response": response}) + _event(
            reply, "response.in_progress", {"response": response}
        )

    def fragment(self, reply: Reply, fragment: Fragment) -> bytes:
        """Write a delta, with the beginning and the end of its output item."""
        part = fragment.part
        place = {"item_id": _item_id(reply, fragment.part_index), "output_index": fragment.part_index}
        call = part.kind == "tool_call"
        told = b""
        if fragment.starts:
            item = _output_item(reply, fragment.part_index, part, "in_progress")
            told = _event(reply, "response.output_item.added", {"output_index": fragment.part_index, "item": item})
            if not call:
                told += _event(
                    reply, "response.content_part.added", {**place, "content_index": 0, "part": _output_text("")}
                )
        if call:
            told += _event(reply, "response.function_call_arguments.delta", {**place, "delta": fragment.text})
        else:
            text = {**place, "content_index": 0, "delta": fragment.text, "logprobs": []}
            told += _event(reply, "response.output_text.delta", text)
        return told + self._item_end(reply, fragment.part_index, part, place) if fragment.ends else told

    def _item_end(self, reply: Reply, index: int, part: Part, place: dict[str, Any]) -> bytes:
        if part.kind == "tool_call":
            arguments = {**place, "name": part.name, "arguments": part.text}
            told = _event(reply, "response.function_call_arguments.done", arguments)
        else:
            within = {**place, "content_index": 0}
            told = _event(reply, "response.output_text.done", {**within, "text": part.text, "logprobs": []})
            told += _event(reply, "response.content_part.done", {**within, "part": _output_text(part.text)})
        item = _output_item(reply, index, part, "completed")
        return told + _event(reply, "response.output_item.done", {"output_index": index, "item": item})

    def closing(self, reply: Reply) -> bytes:
        """Write the event that carries the whole response and its usage."""
        kind = "response.incomplete" if reply.answer.stop == "length" else "response.completed"
        return _event(reply, kind, {"response": _response(reply, finished=True)})

    def malformed(self) -> bytes:
        """Write an event that ends in the middle."""
        return malformed_event()

    def failure(self, reply: Reply) -> bytes:
        """Write `response.failed`, which carries the usage so far."""
        error = {"code": "server_error", "message": "The server had an error while processing your request."}
        response = {**_response(reply, finished=True), "status": "failed", "error": error, "output": []}
        return _event(reply, "response.failed", {"response": response})


def _check_outputs(items: list[_Item]) -> None:
    called = {item.call_id for item in items if item.type == "function_call"}
    answered = {item.call_id for item in items if item.type == "function_call_output"}
    for orphan in sorted(answered - called):
        raise RejectedError(400, f"No tool call found for function call output with call_id {orphan}.", param="input")
    for orphan in sorted(called - answered):
        raise RejectedError(400, f"No tool output found for function call {orphan}.", param="input")


def _text(content: str | list[_ContentPart] | None) -> str:
    if isinstance(content, list):
        return "".join(part.text for part in content)
    return content or ""


def _item_block(item: _Item) -> PromptBlock:
    text = _text(item.content) + _text(item.output)
    characters = len(text) + len(item.name) + len(item.arguments)
    return PromptBlock(characters, (item.role or item.type, text, item.call_id, item.name, item.arguments))


def _choice(choice: str | _NamedChoice | None) -> str:
    if isinstance(choice, _NamedChoice):
        return choice.name or "auto"
    return {"required": "any", "none": "none"}.get(choice or "auto", "auto")


def _response(reply: Reply, *, finished: bool) -> dict[str, Any]:
    cut = reply.answer.stop == "length"
    response: dict[str, Any] = {
        "id": "resp_" + reply.request_id.removeprefix("req_"),
        "object": "response",
        "created_at": reply.created_s,
        "status": "in_progress",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if finished and cut else None,
        "instructions": None,
        "max_output_tokens": reply.asked.max_tokens,
        "model": reply.asked.model,
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "usage": None,
    }
    if finished:
        response["status"] = "incomplete" if cut else "completed"
        response["output"] = [
            _output_item(reply, index, part, "completed") for index, part in enumerate(reply.answer.parts)
        ]
        if not reply.hides_usage:
            response["usage"] = _usage(reply.usage)
    return response


def _item_id(reply: Reply, index: int) -> str:
    return f"item_{reply.request_id.removeprefix('req_')}_{index}"


def _output_item(reply: Reply, index: int, part: Part, status: str) -> dict[str, Any]:
    done = status == "completed"
    item: dict[str, Any] = {"id": _item_id(reply, index), "status": status}
    if part.kind == "tool_call":
        arguments = part.text if done else ""
        return {
            "type": "function_call",
            **item,
            "call_id": f"call_{part.id}",
            "name": part.name,
            "arguments": arguments,
        }
    return {"type": "message", **item, "role": "assistant", "content": [_output_text(part.text)] if done else []}


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cache_read_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }


def _event(reply: Reply, kind: str, fields: dict[str, Any]) -> bytes:
    event = {"type": kind, "sequence_number": reply.sequence, **fields}
    reply.sequence += 1
    return b"event: " + kind.encode() + b"\ndata: " + _encode(event) + b"\n\n"
