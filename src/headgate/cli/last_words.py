"""Last words: which agents the run's own gateway refused for good, and what it told them.

One rule: it goes by what an agent was told, as every client must: no call that waits or that a retry could save is one.
A call that goes through after that takes it back.
"""

import json
from collections import OrderedDict
from collections.abc import MutableMapping
from typing import Any

from headgate.adapters.server import App
from headgate.gateway.callers import presented_key
from headgate.gateway.exchange import HttpExchange, Message, Receive, Send

__all__ = ["LastWords"]

_MOST_KEYS = 10_000
_MOST_BODY_BYTES = 65_536
_ERRORS_FROM = 400


class LastWords:
    """Listens to the gateway's answers; the last 10,000 keys that were refused for good are known."""

    def __init__(self) -> None:
        """Begin with nobody refused."""
        self._said: OrderedDict[str, str] = OrderedDict()

    def to(self, secret: str) -> str | None:
        """Give what the bearer of a key was told when its last call was refused for good; None if it was not."""
        return self._said.get(secret)

    def around(self, gateway: App) -> App:
        """Give the gateway with somebody who listens."""

        async def listened_to(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await gateway(scope, receive, send)
                return
            key = presented_key(HttpExchange.of(scope, receive, send))
            body: bytearray | None = None

            async def heard(message: Message) -> None:
                nonlocal body
                if key is not None and message["type"] == "http.response.start":
                    body = bytearray() if _is_for_good(message["headers"]) else None
                    if message["status"] < _ERRORS_FROM:
                        self._said.pop(key, None)
                elif key is not None and body is not None and len(body) < _MOST_BODY_BYTES:
                    body += message.get("body", b"")
                    if not message.get("more_body", False):
                        self._note(key, bytes(body))
                await send(message)

            await gateway(scope, receive, heard)

        return listened_to

    def _note(self, key: str, body: bytes) -> None:
        try:
            said = str(json.loads(body)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            return
        self._said[key] = said
        while len(self._said) > _MOST_KEYS:
            self._said.popitem(last=False)


def _is_for_good(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether an answer is Headgate's own and says that no retry helps, ever: a provider's has its account's name."""
    named = dict(headers)
    own = b"x-headgate-account" not in named
    return own and named.get(b"x-should-retry") == b"false" and b"retry-after" not in named
