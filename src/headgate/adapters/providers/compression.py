"""Compressed requests: a body that goes to its provider as gzip, where the account's owner says that it takes that.

One rule: what the provider unpacks is what the client sent, byte for byte; one that does not take it after all is sent
the body as it is, and no compressed one any more.
"""

import asyncio
import logging
import zlib
from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType

from headgate.adapters.providers.answer import AccountAnswer, Sending

__all__ = ["LEAST_BYTES", "CompressedSending", "Compression"]

log = logging.getLogger("headgate.accounts")

LEAST_BYTES = 1024
"""Smaller bodies fit into the packet of their head."""

_MOST_HERE_BYTES = 256 * 1024
"""Up to here, a millisecond or two, packing holds the event loop up less than a thread would cost."""

_FAST = 1
_GZIP = zlib.MAX_WBITS | 16
_REFUSED = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNSUPPORTED_MEDIA_TYPE})

Send = Callable[[bytes, bool], Sending]
"""Prepares the call with a body, and says whether that is packed."""


class Compression:
    """Whether an account's requests are compressed still, and what is known of its provider."""

    def __init__(self, account: str) -> None:
        """Begin with trust."""
        self._account = account
        self.is_on = True
        self.is_proven = False

    def takes(self, body: bytes) -> bool:
        """Whether a body is to be compressed."""
        return self.is_on and len(body) > LEAST_BYTES

    def refused(self, status: int) -> None:
        """Compress no more: the provider does not take it."""
        if self.is_on:
            self.is_on = False
            log.warning(
                "account %s: its provider does not take compressed requests (it answered %d); they are sent as they "
                "are from now on; take compress_requests out of the configuration",
                self._account,
                status,
            )


class CompressedSending:
    """One call's context manager, as `Sending`; its body goes compressed, and again as it is where that is refused."""

    __slots__ = ("_body", "_compression", "_send", "_sending")

    def __init__(self, compression: Compression, send: Send, body: bytes) -> None:
        """Prepare the call."""
        self._compression = compression
        self._send = send
        self._body = body
        self._sending: Sending | None = None

    async def __aenter__(self) -> AccountAnswer:
        """Send; gives the answer when its head is there."""
        body, compression = self._body, self._compression
        packed = _packed(body) if len(body) <= _MOST_HERE_BYTES else await asyncio.to_thread(_packed, body)
        self._sending = sending = self._send(packed, True)  # noqa: FBT003 - as `Send` has it
        answer = await sending.__aenter__()
        if answer.failure is None:
            compression.is_proven = True
        if answer.status not in _REFUSED or (compression.is_proven and answer.status == HTTPStatus.BAD_REQUEST):
            return answer
        # It may not like the body as it is either; that is known once it has seen it.
        await sending.__aexit__(None, None, None)
        refused_status = answer.status
        self._sending = sending = self._send(body, False)  # noqa: FBT003 - as above
        answer = await sending.__aenter__()
        if answer.status != refused_status or refused_status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
            compression.refused(refused_status)
        return answer

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the call, wherever it is."""
        if self._sending is not None:
            await self._sending.__aexit__(kind, error, trace)


def _packed(body: bytes) -> bytes:
    packer = zlib.compressobj(_FAST, zlib.DEFLATED, _GZIP)
    return packer.compress(body) + packer.flush()
