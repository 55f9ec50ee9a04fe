"""The Anthropic Messages request: decoded once, checked as the API checks it, turned into what is asked.

One rule: the messages of a refusal name the place (`messages.3.content.0`) as the API does, because clients match them.
Answers are written elsewhere.
"""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from headgate.testing.provider.answers import token_count
from headgate.testing.provider.asked import Asked, OfferedTool, PromptBlock, RejectedError, seed_of
from headgate.testing.provider.prompt_cache import FIVE_MINUTES_S, ONE_HOUR_S

__all__ = ["MessagesHead", "read_head", "read_messages"]

_BREAKPOINTS_LIMIT = 4
# Anthropic, "Vision": an image of about a megapixel costs some 1,500 tokens, whatever its encoded size.
_IMAGE_CHARACTERS = 6_000
_LIVES_S = {"5m": FIVE_MINUTES_S, "1h": ONE_HOUR_S}
_ROLES = ("user", "assistant")


class _CacheControl(Struct):
    type: str = "ephemeral"
    ttl: str = "5m"


class _Block(Struct):
    """Any content block; fields of kinds that are not known here are skipped."""

    type: str
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: Raw = Raw(b"")
    tool_use_id: str = ""
    content: "str | list[_Block] | dict[str, Raw] | None" = None
    source: Raw = Raw(b"")
    cache_control: _CacheControl | None = None


class _Message(Struct):
    role: str
    content: str | list[_Block]


class _Tool(Struct):
    name: str
    type: str | None = None
    description: str = ""
    input_schema: Raw = Raw(b"")
    cache_control: _CacheControl | None = None


class _ToolChoice(Struct):
    type: str = "auto"
    name: str = ""


class _Body(Struct):
    model: str
    messages: list[_Message]
    max_tokens: int | None = None
    system: str | list[_Block] = ""
    tools: list[_Tool] = []
    tool_choice: _ToolChoice | None = None
    stream: bool = False


class MessagesHead(Struct):
    """The fields that an answer from a recording needs; its messages stay raw, which halves the cost of decoding."""

    model: str
    messages: list[Raw]
    max_tokens: int | None = None
    stream: bool = False


_BODY = msgspec.json.Decoder(_Body)
_HEAD = msgspec.json.Decoder(MessagesHead)


def read_head(body: bytes) -> MessagesHead:
    """Decode only the head of a request.

    Raises:
        RejectedError: 400, as the API words it.
    """
    head = _decode(_HEAD, body)
    assert isinstance(head, MessagesHead)
    return head


def read_messages(body: bytes, *, counting_only: bool = False) -> Asked:
    """Decode and check a request; `counting_only` is for count_tokens, which needs no `max_tokens`.

    Raises:
        RejectedError: 400, as the API words it.
    """
    asked = _decode(_BODY, body)
    assert isinstance(asked, _Body)
    if not counting_only:
        if asked.max_tokens is None:
            raise RejectedError(400, "max_tokens: Field required")
        if asked.max_tokens < 1:
            raise RejectedError(400, "max_tokens: Input should be greater than or equal to 1")
    if not asked.messages:
        raise RejectedError(400, "messages: at least one message is required")
    _check_messages(asked.messages)
    return _asked(asked)


def _decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> object:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise RejectedError(400, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RejectedError(400, f"The request body is not valid JSON: {error}") from error


def _check_messages(messages: list[_Message]) -> None:
    owed: list[str] = []
    for index, message in enumerate(messages):
        if message.role not in _ROLES:
            raise RejectedError(400, f"messages.{index}.role: Input should be 'user' or 'assistant'")
        if not message.content:
            if message.role == "assistant" and index == len(messages) - 1:
                continue
            raise RejectedError(
                400,
                f"messages.{index}: all messages must have non-empty content except for the optional final assistant "
                "message",
            )
        blocks = message.content if isinstance(message.content, list) else []
        _check_results(index, blocks, owed)
        owed = [block.id for block in blocks if block.type == "tool_use"]
    if owed:
        raise RejectedError(400, _unanswered(len(messages) - 1, owed))


def _check_results(index: int, blocks: list[_Block], owed: list[str]) -> None:
    answered: set[str] = set()
    for position, block in enumerate(blocks):
        if block.type == "tool_result":
            if block.tool_use_id not in owed:
                raise RejectedError(
                    400,
                    f"messages.{index}.content.{position}: unexpected `tool_use_id` found in `tool_result` blocks: "
                    f"{block.tool_use_id}. Each `tool_result` block must have a corresponding `tool_use` block in the "
                    "previous message.",
                )
            answered.add(block.tool_use_id)
        elif block.type == "text" and (not block.text or block.text.isspace()):
            raise RejectedError(400, f"messages.{index}.content.{position}: text content blocks must be non-empty")
    missing = [each for each in owed if each not in answered]
    if missing:
        raise RejectedError(400, _unanswered(index - 1, missing))


def _unanswered(index: int, ids: list[str]) -> str:
    return (
        f"messages.{index}: `tool_use` ids were found without `tool_result` blocks immediately after: {', '.join(ids)}."
        " Each `tool_use` block must have a corresponding `tool_result` block in the next message."
    )


def _asked(body: _Body) -> Asked:
    blocks: list[PromptBlock] = []
    breakpoints: list[tuple[int, int]] = []
    for tool in body.tools:
        schema = bytes(tool.input_schema)
        characters = len(tool.name) + len(tool.description) + len(schema)
        blocks.append(PromptBlock(characters, ("tool", tool.type, tool.name, tool.description, schema)))
        _mark(tool.cache_control, blocks, breakpoints)
    _add_content("system", body.system, blocks, breakpoints)
    for message in body.messages:
        _add_content(message.role, message.content, blocks, breakpoints)
    _check_breakpoints(breakpoints)
    last = body.messages[-1]
    choice = body.tool_choice or _ToolChoice()
    return Asked(
        model=body.model,
        stream=body.stream,
        max_tokens=body.max_tokens,
        prompt_tokens=max(1, token_count(sum(block.characters for block in blocks))),
        blocks=blocks,
        seed=seed_of(body.model, _plain_text(last), len(body.messages)),
        tools=tuple(OfferedTool(tool.name, bytes(tool.input_schema)) for tool in body.tools),
        tool_choice=choice.name if choice.type == "tool" else choice.type,
        ends_with_question=last.role == "user" and not _answers_a_tool(last),
        breakpoints=breakpoints,
    )


def _add_content(
    role: str, content: str | list[_Block], blocks: list[PromptBlock], breakpoints: list[tuple[int, int]]
) -> None:
    if isinstance(content, str):
        if content:
            blocks.append(PromptBlock(len(content), (role, content)))
        return
    for block in content:
        blocks.append(_prompt_block(role, block))
        _mark(block.cache_control, blocks, breakpoints)


def _prompt_block(role: str, block: _Block) -> PromptBlock:
    # A text block is the same prompt as the bare string: clients turn one into the other when they move a cache mark.
    if block.type == "text":
        return PromptBlock(len(block.text), (role, block.text))
    if block.type == "tool_use":
        arguments = bytes(block.input)
        return PromptBlock(len(block.name) + len(arguments), (role, block.id, block.name, arguments))
    if block.type == "tool_result" and isinstance(block.content, str):
        return PromptBlock(len(block.content), (role, block.tool_use_id, block.content))
    if block.type == "image":
        return PromptBlock(_IMAGE_CHARACTERS, (role, bytes(block.source)))
    inner: list[PromptBlock] = []
    if isinstance(block.content, str):
        inner.append(PromptBlock(len(block.content), (block.content,)))
    elif isinstance(block.content, list):
        inner += [_prompt_block(role, each) for each in block.content]
    elif block.content is not None:
        inner.append(_opaque(b"".join(bytes(each) for each in block.content.values())))
    own = _opaque(bytes(block.source))
    return PromptBlock(
        len(block.thinking) + own.characters + sum(each.characters for each in inner),
        (role, block.type, block.tool_use_id, block.thinking, own.identity, *(each.identity for each in inner)),
    )


def _opaque(raw: bytes) -> PromptBlock:
    return PromptBlock(len(raw), (raw,))


def _mark(control: _CacheControl | None, blocks: list[PromptBlock], breakpoints: list[tuple[int, int]]) -> None:
    if control is None:
        return
    life_s = _LIVES_S.get(control.ttl)
    if life_s is None or control.type != "ephemeral":
        raise RejectedError(400, f"cache_control: expected type 'ephemeral' and ttl '5m' or '1h', not {control.ttl!r}")
    breakpoints.append((len(blocks) - 1, life_s))


def _check_breakpoints(breakpoints: list[tuple[int, int]]) -> None:
    if len(breakpoints) > _BREAKPOINTS_LIMIT:
        raise RejectedError(
            400,
            f"A maximum of {_BREAKPOINTS_LIMIT} blocks with cache_control may be provided. Found {len(breakpoints)}.",
        )
    lives_s = [life_s for _, life_s in breakpoints]
    if lives_s != sorted(lives_s, reverse=True):
        raise RejectedError(
            400,
            "cache_control: a block with ttl='1h' must not come after one with ttl='5m' (tools, system, messages)",
        )


def _plain_text(message: _Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(
        block.content if isinstance(block.content, str) else block.text or block.thinking for block in message.content
    )


def _answers_a_tool(message: _Message) -> bool:
    return isinstance(message.content, list) and any(block.type == "tool_result" for block in message.content)
