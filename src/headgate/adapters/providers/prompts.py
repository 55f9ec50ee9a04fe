"""Prompts: the most that a request's input can be, as far as its body tells.

One rule: what is known to be no larger than its bytes is counted by them, a picture by its vendor's rule, and all else,
new kinds of parts included, is unknown: its size is then the context window's. Read only for calls that meet a budget.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from headgate.adapters.providers.endpoints import EndpointName
from headgate.adapters.providers.pictures import picture_tokens
from headgate.adapters.providers.reading import UNREADABLE
from headgate.core.bounds import OVERHEAD_TOKENS, PromptBound

__all__ = ["prompt_bound"]

# What a provider says to the model of its tools besides what the body says of them: at most 804 tokens (Anthropic,
# "Tool use", 2026), and for each tool that only a name stands for, at most 735 and 499 for the screen.
_TOOLS_TOKENS = 1_024
_NAMED_TOOL_TOKENS = 2_048
# A client's word that may come into a message.
_MOST_KIND_CHARS = 40

_Json = Mapping[str, Any]


def prompt_bound(endpoint: EndpointName, model: str, body: bytes) -> PromptBound:
    """Give what bounds the input of a call that `read_call` has read."""
    if endpoint in {"embeddings", "completions"}:  # many prompts may stand in one body, in tokens too
        return PromptBound(len(body), OVERHEAD_TOKENS, windowed=False)
    read = _read_but_texts(body) if endpoint in {"chat", "messages"} else None
    if read is None:
        try:
            read = msgspec.json.decode(body)
        except UNREADABLE:
            read = None
    if not isinstance(read, dict):
        return PromptBound(len(body), unknown="a body that cannot be read")
    prompt = _Prompt(model, len(body))
    _ENDPOINTS.get(endpoint, _unknown_endpoint)(prompt, read)
    return PromptBound(prompt.text_bytes, prompt.extra_tokens, prompt.unknown, prompt.turns, prompt.choices)


class _Said(msgspec.Struct, gc=False):
    content: msgspec.Raw = msgspec.Raw()
    audio: Any = None


class _Talk(msgspec.Struct, gc=False):
    messages: list[_Said] | None = None
    system: msgspec.Raw = msgspec.Raw()
    tools: Any = None
    web_search_options: Any = None
    n: Any = None
    mcp_servers: Any = None
    container: Any = None
    context_management: Any = None


_talk_decoder = msgspec.json.Decoder(_Talk)
_JSON_STRING = b'"'


def _read_but_texts(body: bytes) -> _Json | None:
    """Read of a conversation what its bound depends on; None if it is no such thing.

    Texts are left empty: they are counted with the body's bytes, and making strings of them is most of the reading.
    """
    try:
        talk = _talk_decoder.decode(body)
        messages = talk.messages
        return {
            "messages": messages and [{"content": _but_text(each.content), "audio": each.audio} for each in messages],
            "system": _but_text(talk.system),
            "tools": talk.tools,
            "web_search_options": talk.web_search_options,
            "n": talk.n,
            "mcp_servers": talk.mcp_servers,
            "container": talk.container,
            "context_management": talk.context_management,
        }
    except UNREADABLE:
        return None


def _but_text(raw: msgspec.Raw) -> object:
    if not raw:
        return None
    return "" if memoryview(raw)[:1] == _JSON_STRING else msgspec.json.decode(raw)


@dataclass(slots=True)
class _Prompt:
    """What was found so far."""

    model: str
    text_bytes: int
    extra_tokens: int = OVERHEAD_TOKENS
    unknown: str | None = None
    turns: int | None = 1
    choices: int = 1

    def is_unknown(self, what: str) -> None:
        self.unknown = self.unknown or what

    def picture(self, data: object) -> None:
        tokens = picture_tokens(self.model, data) if isinstance(data, str) else None
        if tokens is None or not isinstance(data, str):
            self.is_unknown("an image")
            return
        self.text_bytes -= len(data)
        self.extra_tokens += tokens

    def picture_at(self, url: object) -> None:
        scheme, _, data = url.partition(";base64,") if isinstance(url, str) else ("", "", "")
        if scheme.startswith("data:") and data:
            self.picture(data)
        else:
            self.is_unknown("an image that is only named")

    def tools(self, tools: object, own: Callable[[str], bool], named: Callable[[str], bool]) -> None:
        """Count tools: those described in the body, those the caller runs but only names, and the provider's."""
        if not tools:
            return
        self.extra_tokens += _TOOLS_TOKENS
        for tool in tools if isinstance(tools, list) else [None]:
            kind = tool.get("type") if isinstance(tool, dict) else ""
            if kind is None or (isinstance(kind, str) and own(kind)):
                continue
            if isinstance(kind, str) and named(kind):
                self.extra_tokens += _NAMED_TOOL_TOKENS
            else:
                self.turns = None


def _unknown_endpoint(prompt: _Prompt, _body: _Json) -> None:
    prompt.is_unknown("an endpoint whose prompts are not known")


# --- Anthropic's messages

# As large as their bytes at the most: texts, and what is encrypted, whose bytes are more than those of its text.
_MESSAGES_PLAIN = frozenset(
    (
        "text",
        "thinking",
        "redacted_thinking",
        "tool_use",
        "server_tool_use",
        "mcp_tool_use",
        "search_result",
        "web_search_tool_result",
    )
)
_NAMED_CLIENT_TOOLS = ("bash_", "text_editor_", "computer_", "memory_")


def _messages(prompt: _Prompt, body: _Json) -> None:
    prompt.tools(body.get("tools"), lambda kind: kind == "custom", lambda kind: kind.startswith(_NAMED_CLIENT_TOOLS))
    if body.get("mcp_servers"):
        prompt.turns = None
    if body.get("container"):
        prompt.is_unknown("a container")
    edits = body.get("context_management")
    if edits and "compact" in str(edits):
        prompt.turns = None  # the prompt is read once more, to be summed up (Anthropic, "Compaction", 2026)
    _blocks(prompt, body.get("system"))
    for message in _objects(prompt, body.get("messages")):
        _blocks(prompt, message.get("content"))


def _blocks(prompt: _Prompt, content: object) -> None:
    if content is None or isinstance(content, str):
        return
    for block in _objects(prompt, content):
        kind = _kind(block)
        if kind in _MESSAGES_PLAIN:
            continue
        source = block.get("source")
        origin = source.get("type") if isinstance(source, dict) else None
        if kind in {"tool_result", "mcp_tool_result"}:
            _blocks(prompt, block.get("content"))
        elif kind == "image" and isinstance(source, dict) and origin == "base64":
            prompt.picture(source.get("data"))
        elif kind == "document" and isinstance(source, dict) and origin == "content":
            _blocks(prompt, source.get("content"))
        elif kind != "document" or origin != "text":
            # Pages of a PDF count as text and as a picture each, and what is in them is compressed: no size of a file
            # bounds it, and 100 or 600 pages (Anthropic, "PDF support") are more than the window.
            prompt.is_unknown(f"a part of type {kind}")


# --- OpenAI's chat

_PARTS_PLAIN = frozenset(("text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text"))
_OWN_TOOLS = frozenset(("function", "custom"))


def _chat(prompt: _Prompt, body: _Json) -> None:
    prompt.tools(body.get("tools"), _OWN_TOOLS.__contains__, lambda _kind: False)
    # Models with a search of their own (gpt-4o-search-preview, gpt-5-search-api) need no word to use it.
    if body.get("web_search_options") is not None or "search" in prompt.model:
        prompt.turns = None
    choices = body.get("n")
    prompt.choices = choices if isinstance(choices, int) and choices > 0 else 1
    for message in _objects(prompt, body.get("messages")):
        if message.get("audio"):
            prompt.is_unknown("an earlier answer in sound")
        _parts(prompt, message.get("content"))


def _parts(prompt: _Prompt, content: object) -> None:
    if content is None or isinstance(content, str):
        return
    for part in _objects(prompt, content):
        kind, image = _kind(part), part.get("image_url")
        if kind in _PARTS_PLAIN:
            continue
        if kind in {"image_url", "input_image", "computer_screenshot"} and not part.get("file_id"):
            prompt.picture_at(image.get("url") if isinstance(image, dict) else image)
        else:
            prompt.is_unknown(f"a part of type {kind}")


# --- OpenAI's responses

_ITEMS_PLAIN = frozenset(
    (
        "function_call",
        "custom_tool_call",
        "local_shell_call",
        "local_shell_call_output",
        "apply_patch_call",
        "apply_patch_call_output",
        "mcp_list_tools",
        "mcp_call",
        "mcp_approval_request",
        "mcp_approval_response",
    )
)
_WITH_OUTPUT = frozenset(("function_call_output", "custom_tool_call_output", "computer_call_output"))
_ON_THE_SERVER = ("previous_response_id", "conversation", "prompt")
_CLIENT_TOOLS = frozenset(("local_shell", "apply_patch", "computer_use_preview", "computer"))


def _responses(prompt: _Prompt, body: _Json) -> None:
    for word in _ON_THE_SERVER:
        if body.get(word):
            prompt.is_unknown(f"what {word} names")
    prompt.tools(body.get("tools"), _OWN_TOOLS.__contains__, _CLIENT_TOOLS.__contains__)
    if "deep-research" in prompt.model or body.get("context_management"):
        prompt.turns = None
    most_calls = body.get("max_tool_calls")
    if prompt.turns is None and isinstance(most_calls, int) and not isinstance(most_calls, bool) and most_calls >= 0:
        prompt.turns = most_calls + 1
    given = body.get("input")
    if given is not None and not isinstance(given, str):
        _items(prompt, given)


def _items(prompt: _Prompt, given: object) -> None:
    for item in _objects(prompt, given):
        kind = _kind(item) if "type" in item else "message"
        if kind == "message":
            _parts(prompt, item.get("content"))
        elif kind in _WITH_OUTPUT:
            output = item.get("output")
            _parts(prompt, [output] if isinstance(output, dict) else output)
        elif kind == "reasoning" and (item.get("encrypted_content") or not item.get("id")):
            continue
        elif kind not in _ITEMS_PLAIN:
            prompt.is_unknown(f"an item of type {kind}")


_ENDPOINTS: dict[EndpointName, Callable[[_Prompt, _Json], None]] = {
    "messages": _messages,
    "chat": _chat,
    "responses": _responses,
}


def _kind(part: _Json) -> str:
    kind = part.get("type")
    return kind[:_MOST_KIND_CHARS] if isinstance(kind, str) else ""


def _objects(prompt: _Prompt, found: object) -> list[_Json]:
    """Give the objects of a list; whatever else stands where they should is unknown."""
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        prompt.is_unknown("a content that cannot be read")
        return []
    return found
