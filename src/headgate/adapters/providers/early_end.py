"""Early ends: the events with which a stream ends well although its provider had more to say.

One rule: what has gone to the client and what is added here are together a stream as the vendor writes it for an answer
that came to its `max_tokens`. When a stream is to end is not known here.
"""

from typing import Any

import msgspec

from headgate.adapters.providers.endpoints import Endpoint
from headgate.adapters.providers.reading import UNREADABLE, fields_of
from headgate.core.usage import Usage

__all__ = ["EarlyEnd"]

_MOST_ITEMS = 1_000


class EarlyEnd:
    """Follows one stream, event by event, to know how it could end at any time."""

    def __init__(self, endpoint: Endpoint, *, tells_usage: bool = False) -> None:
        """Begin before its first event; `tells_usage` of a chat whose client asked for its usage at the end."""
        self._endpoint = endpoint
        self._tells_usage = tells_usage
        self._open_choices: dict[int, None] = {}
        self._begun = False
        self._open_blocks: list[int] = []
        self._first: dict[str, Any] = {}
        self._items: list[Any] = []
        self._sequence = 0

    def follow(self, events: bytes) -> None:
        """Take whole events that go to the client."""
        for event in events.replace(b"\r\n", b"\n").split(b"\n\n"):
            at = event.find(b"data: ")
            if at < 0:
                continue
            try:
                data = fields_of(msgspec.json.decode(event[at + 6 :]))
            except UNREADABLE:
                continue
            self._take(data)

    def end(self, usage: Usage | None) -> bytes:
        """Give what ends the stream now; `usage` is what is known of it."""
        used = usage or Usage(reported=False)
        if self._endpoint.dialect == "anthropic":
            stopped = [_named({"type": "content_block_stop", "index": index}) for index in self._open_blocks]
            delta = {"stop_reason": "max_tokens", "stop_sequence": None}
            told = {"type": "message_delta", "delta": delta, "usage": {"output_tokens": used.output_tokens}}
            return b"".join([*stopped, _named(told), _named({"type": "message_stop"})])
        if self._endpoint.name == "responses":
            return self._incomplete(used)
        return self._with_length(used)

    def _take(self, data: dict[str, Any]) -> None:
        match data.get("type"):
            case "content_block_start":
                self._open_blocks.append(data.get("index", 0))
            case "content_block_stop" if data.get("index") in self._open_blocks:
                self._open_blocks.remove(data["index"])
            case "response.created":
                self._first = fields_of(data.get("response"))
            case "response.output_item.done" if len(self._items) < _MOST_ITEMS:
                self._items.append(data.get("item"))
            case None:
                self._take_chunk(data)
        if isinstance(number := data.get("sequence_number"), int):
            self._sequence = number

    def _take_chunk(self, data: dict[str, Any]) -> None:
        if not self._first:
            self._first = {name: value for name, value in data.items() if name not in ("choices", "usage")}
        choices = data.get("choices")
        for choice in map(fields_of, choices if isinstance(choices, list) else ()):
            index = choice.get("index")
            if not isinstance(index, int):
                continue
            self._begun = True
            if choice.get("finish_reason") is not None:
                self._open_choices.pop(index, None)
            elif len(self._open_choices) < _MOST_ITEMS:
                self._open_choices[index] = None

    def _with_length(self, used: Usage) -> bytes:
        text: dict[str, Any] = {"text": "", "logprobs": None} if self._endpoint.name == "completions" else {"delta": {}}
        ends = [{"index": index, **text, "finish_reason": "length"} for index in self._open_choices]
        if not self._begun:
            ends = [{"index": 0, **text, "finish_reason": "length"}]
        no_usage = {"usage": None} if self._tells_usage else {}
        chunks = [{**self._first, "choices": [each], **no_usage} for each in ends]
        if self._tells_usage:
            prompt, output = used.prompt_tokens, used.output_tokens
            told = {
                "prompt_tokens": prompt,
                "completion_tokens": output,
                "total_tokens": prompt + output,
                "prompt_tokens_details": {"cached_tokens": used.cache_read_tokens},
                "completion_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
            }
            chunks.append({**self._first, "choices": [], "usage": told})
        return b"".join(b"data: %b\n\n" % msgspec.json.encode(chunk) for chunk in chunks) + b"data: [DONE]\n\n"

    def _incomplete(self, used: Usage) -> bytes:
        prompt, output = used.prompt_tokens, used.output_tokens
        told = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": used.cache_read_tokens},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
            "total_tokens": prompt + output,
        }
        response = {
            **self._first,
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": self._items,
            "usage": told,
        }
        number = self._sequence + 1
        return _named({"type": "response.incomplete", "sequence_number": number, "response": response})


def _named(data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), msgspec.json.encode(data))
