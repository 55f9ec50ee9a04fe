"""An answer on its way from a provider's account to a client: its head, its bytes, and what they tell.

One rule: all that arrives goes on, but for half an event before a break; what it tells is known with its last byte.
It retries and settles nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from http import HTTPStatus
from types import TracebackType

from headgate.adapters.providers.endpoints import Endpoint
from headgate.adapters.providers.failures import read_failure
from headgate.adapters.providers.http import CONNECTION_HEADERS, Broken, Reply
from headgate.adapters.providers.meters import BodyDecoder, Meter, open_meter
from headgate.core.notices import Notices
from headgate.core.retries import Failure
from headgate.core.usage import Usage
from headgate.ports import Headers

__all__ = ["AccountAnswer", "ReadNotices", "Sending", "named_by_connection"]

ReadNotices = Callable[[Headers, float], Notices]
"""A dialect's reader: the headers, and when they came."""

# `set-cookie` is between the provider's edge and an account that many clients share.
_NOT_PASSED_ON = (CONNECTION_HEADERS - {b"content-length"}) | {b"proxy-authenticate", b"set-cookie"}
# `access-control-` would let pages read an answer of a gateway that they may not even ask.
_OURS = (b"x-headgate-", b"access-control-")

# Enough for any error that a vendor writes; what is longer passes on all the same, only unread.
_ERROR_LIMIT_BYTES = 64 * 1024


class AccountAnswer:
    """A provider's answer; implements `ports.Answer`.

    `usage` is None until the provider has told the input, and `reported` when it has told the output as well; until
    then its output is what was seen going by. `failure` may come while the body is read.
    """

    __slots__ = (
        *("_asked_as", "_ended", "_meter", "_read_notices", "_reply", "_request_id", "_unread"),
        *("failure", "headers", "status"),
    )

    def __init__(
        self,
        reply: Reply,
        headers: Headers,
        meter: Meter,
        request_id: str | None,
        read_notices: ReadNotices,
        asked_as: Mapping[str, str],
    ) -> None:
        """Stand for a reply whose head is there."""
        self.status = reply.status
        self.headers = headers
        self.failure: Failure | None = None
        self._reply = reply
        self._meter = meter
        self._read_notices = read_notices
        self._request_id = request_id
        self._asked_as = asked_as
        self._unread: list[bytes] = []
        self._ended = False

    @property
    def usage(self) -> Usage | None:
        """What the call used, as far as it is known now."""
        return self._meter.reading.usage

    @property
    def output_seen_tokens(self) -> int:
        """The least output there was, for a call whose usage was never told."""
        return self._meter.reading.output_seen_tokens

    @property
    def model_served(self) -> str | None:
        """The model that answered, by the name that calls use where the account has one of its own for it."""
        model = self._meter.reading.model
        return self._asked_as.get(model, model) if self._asked_as and model is not None else model

    @property
    def finish(self) -> str | None:
        """Why the model stopped, in the provider's word."""
        return self._meter.reading.finish

    @property
    def provider_request(self) -> str | None:
        """The provider's id of the request or, where it has none, of what it answered."""
        return self._request_id or self._meter.reading.message_id

    def notices(self, now_s: float) -> Notices:
        """Read what the headers say of limits; what an error says of waiting is read with the error."""
        notices = self._read_notices(self.headers, now_s)
        if self.failure is None or self.failure.retry_after_s is None:
            return notices
        return replace(notices, retry_after_s=self.failure.retry_after_s)

    def __aiter__(self) -> "AccountAnswer":
        """Iterate over the body's bytes for the client."""
        return self

    async def __anext__(self) -> bytes:
        """Give what has arrived, at least one byte.

        Raises:
            ProviderError: After the last byte of a body that did not end well.
        """
        if self._unread:
            return self._unread.pop(0)
        while not self._ended:
            passed = await self._next()
            if passed:
                return passed
        raise StopAsyncIteration

    async def _next(self) -> bytes:
        meter = self._meter
        try:
            passed = meter.feed(await self._reply.__anext__())
        except StopAsyncIteration:
            self._ended = True
            passed = meter.close()
        except Broken as error:
            # What is left is half an event, which a client drops (WHATWG HTML, 9.2.6): an error can follow cleanly.
            meter.close()
            self.failure = self.failure or error.failure
            raise
        if meter.reading.failure is not None:
            self.failure = meter.reading.failure
        return passed

    def left(self) -> None:
        """Read what has arrived and nobody took: whoever leaves is charged for it all the same."""
        if not self._ended:
            self._meter.feed(self._reply.arrived())
            self._meter.close()

    async def read_error(self) -> None:
        """Read the beginning of an error's body, to know the failure; it is still given out."""
        size_bytes = 0
        with suppress(Broken):  # the status is enough to decide, and the reply raises it again behind what came
            async for chunk in self._reply:
                self._unread.append(chunk)
                size_bytes += len(chunk)
                if size_bytes >= _ERROR_LIMIT_BYTES:
                    break
        body = b"".join(self._unread)
        if _header(self.headers, b"content-encoding") not in (b"", b"identity"):
            body = BodyDecoder(_ERROR_LIMIT_BYTES).feed(body)
        self.failure = read_failure(self.status, self.headers, body)


class Sending:
    """One call's context manager; a class, because a generator's costs three times as much on the hot path."""

    __slots__ = ("_answer", "_asked_as", "_call", "_endpoint", "_hides_usage", "_read_notices", "_request_id_header")

    def __init__(
        self,
        call: AbstractAsyncContextManager[Reply],
        endpoint: Endpoint | None,
        *,
        request_id_header: bytes,
        hides_usage: bool,
        read_notices: ReadNotices,
        asked_as: Mapping[str, str],
    ) -> None:
        """Wrap the client's call; `hides_usage` when the body asks for a chunk that the client did not.

        `asked_as` has the names that calls use of models by those that the account uses.
        """
        self._asked_as = asked_as
        self._call = call
        self._endpoint = endpoint
        self._request_id_header = request_id_header
        self._hides_usage = hides_usage
        self._read_notices = read_notices
        self._answer: AccountAnswer | None = None

    async def __aenter__(self) -> AccountAnswer:
        """Send; gives the answer when its head is there, and with all of its body where that is an error's."""
        reply = await self._call.__aenter__()
        try:
            self._answer = await self._answered(reply)
        except BaseException:
            await self._call.__aexit__(None, None, None)
            raise
        return self._answer

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the call, wherever it is; all that came of it has been read then."""
        if self._answer is not None:
            self._answer.left()
        await self._call.__aexit__(kind, error, trace)

    async def _answered(self, reply: Reply) -> AccountAnswer:
        request_id = _header(reply.headers, self._request_id_header).decode("latin-1") or None
        ok = HTTPStatus.OK <= reply.status < HTTPStatus.MULTIPLE_CHOICES
        content_type = _header(reply.headers, b"content-type")
        hides_usage = ok and self._hides_usage and content_type.startswith(b"text/event-stream")
        meter = open_meter(
            self._endpoint if ok else None,
            content_type,
            _header(reply.headers, b"content-encoding"),
            hides_usage=hides_usage,
        )
        headers = _passed_on(reply.headers, without_length=hides_usage)
        answer = AccountAnswer(reply, headers, meter, request_id, self._read_notices, self._asked_as)
        if not ok:
            await answer.read_error()
        return answer


def named_by_connection(headers: Headers) -> Iterable[bytes]:
    """Give the headers, in lower case, that `connection` says are this connection's own."""
    value = _header(headers, b"connection")
    if not value or value.lower() in (b"keep-alive", b"close"):
        return ()
    return [name.strip().lower() for name in value.split(b",")]


def _header(headers: Headers, wanted: bytes) -> bytes:
    """Give the value of the first header of a name in lower case; empty if there is none."""
    for name, value in headers:
        if name.lower() == wanted:
            return value
    return b""


def _passed_on(headers: Headers, *, without_length: bool) -> Headers:
    of_connection = named_by_connection(headers)
    passed = []
    for name, value in headers:
        lower = name.lower()
        if lower in _NOT_PASSED_ON or lower in of_connection or lower.startswith(_OURS):
            continue
        if without_length and lower == b"content-length":
            continue
        passed.append((name, value))
    return passed
