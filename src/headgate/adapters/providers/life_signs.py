"""Life signs: what keeps a stream open whose answer has not begun, and how it ends where no answer comes.

One rule: a client takes a sign for nothing at all, but for a reason to go on waiting. When one is due is not known
here.
"""

import msgspec

from headgate.adapters.providers import openai
from headgate.adapters.providers.endpoints import Endpoint
from headgate.adapters.providers.meters import BodyDecoder
from headgate.adapters.providers.reading import UNREADABLE, fields_of
from headgate.adapters.providers.refusals import RefusalKind, error_event
from headgate.ports import Answer, Headers

__all__ = ["LifeSigns", "is_event_stream"]

# `ping` may come anywhere in a stream of messages (wire.md section 2).
_PING = b'event: ping\ndata: {"type": "ping"}\n\n'
# A comment, which every reader of server-sent events skips (WHATWG HTML, 9.2.6).
_COMMENT = b": waiting\n\n"
# Codex's timer for an idle stream (300 s) hears events only, and it passes over those that it does not know
# (codex-rs/codex-api/src/sse/responses.rs). The openai SDK's own helpers do not, and want `response.created` first.
_KEEPALIVE = b'event: keepalive\ndata: {"type":"keepalive"}\n\n'

_HEAD: Headers = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))
_MOST_SHOWN_CHARS = 200


class LifeSigns:
    """The signs of one endpoint's stream."""

    __slots__ = ("_endpoint", "_is_codex", "sign")

    def __init__(self, endpoint: Endpoint, user_agent: str | None) -> None:
        """Speak to the client as it understands it."""
        self._endpoint = endpoint
        self._is_codex = endpoint.name == "responses" and (user_agent or "").lower().startswith("codex")
        self.sign = _PING if endpoint.dialect == "anthropic" else _KEEPALIVE if self._is_codex else _COMMENT

    @property
    def head(self) -> Headers:
        """The head that goes before the first sign."""
        return _HEAD

    def error_event(self, kind: RefusalKind, message: str, request_id: str) -> bytes:
        """Give the event that ends the stream with an error of Headgate's own."""
        if self._is_codex:
            return openai.response_failed_event(kind, message)
        return error_event(self._endpoint, kind, message, request_id=request_id)

    def told_as_event(self, answer: Answer, body: bytes, request_id: str) -> bytes:
        """Give the event that ends the stream with a provider's error, in its own words where they can be read."""
        encoding = next((value for name, value in answer.headers if name.lower() == b"content-encoding"), b"")
        if encoding not in (b"", b"identity"):
            body = BodyDecoder().feed(body)
        try:
            told = fields_of(msgspec.json.decode(body))
        except UNREADABLE:
            told = {}
        error = fields_of(told.get("error"))
        if not error:
            said = body[:_MOST_SHOWN_CHARS].decode(errors="replace")
            return self.error_event("upstream_failed", f"the provider answered {answer.status}: {said}", request_id)
        if self._endpoint.dialect == "anthropic":
            return b"event: error\ndata: %b\n\n" % _on_one_line(body, {"type": "error", **told})
        if self._endpoint.name == "responses":
            return openai.response_error_told(error, as_failed=self._is_codex)
        return b"data: %b\n\n" % _on_one_line(body, told)


def is_event_stream(answer: Answer) -> bool:
    """Whether an answer can go on where life signs have gone before it: events, as they are."""
    named = {name.lower(): value.lower() for name, value in answer.headers}
    is_plain = named.get(b"content-encoding", b"") in (b"", b"identity")
    return is_plain and named.get(b"content-type", b"").startswith(b"text/event-stream")


def _on_one_line(body: bytes, told: dict[str, object]) -> bytes:
    """Give a body as it came, if that is one line, as an event's data has to be."""
    body = body.strip()
    return body if b"\n" not in body and b"\r" not in body else msgspec.json.encode(told)
