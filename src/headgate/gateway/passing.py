"""Passing: calls of a provider that Headgate does not read, carried there and back while they come in.

One rule: neither body is held, whatever its size. They meet the limits on requests and slots; what they cost is nothing
where they only ask, store or call off, and unknown else, so that no budget of money lets them go.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from http import HTTPStatus

from headgate.adapters.providers.call_head import stated_wait_s
from headgate.adapters.providers.endpoints import Endpoint
from headgate.core.errors import CallerError
from headgate.core.scheduling import Standing
from headgate.core.scopes import Scopes
from headgate.gateway.exchange import HttpExchange
from headgate.gateway.relay import CancelledWithClient, own_head
from headgate.ports import Passage, Request
from headgate.runtime.calls import Call
from headgate.runtime.manager import Manager

MOST_UPLOAD_BYTES = 1024 * 1024 * 1024
"""The largest file of a provider has half of it (OpenAI 512 MB, Anthropic 500 MB)."""

# TRACE would have a server tell the account's key to whoever asks.
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_ASKED_EVERYWHERE = frozenset({"GET", "HEAD", "DELETE"})
_MIGHT_BE_ELSEWHERE = frozenset({"batches", "message_batches", "files", "stored_responses"})
_UNKNOWN_TOKENS = 1
"""Something is spent: at an unknown price that is an unknown cost."""


class NotPassedError(CallerError):
    """Nobody is there whom it could be passed to, or it is nothing to pass on."""


class Upload:
    """A client's body on its way; implements `ports.Upload`."""

    def __init__(self, exchange: HttpExchange) -> None:
        """Take nothing yet."""
        self._exchange = exchange
        self.is_begun = False
        stated = exchange.header(b"content-length")
        self.length = int(stated) if stated is not None and stated.isdigit() else None

    @property
    def is_empty(self) -> bool:
        """Whether there is no body at all."""
        return not self.length and self._exchange.header(b"transfer-encoding") is None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give its bytes as they come.

        Raises:
            BodyTooLargeError: there are more than MOST_UPLOAD_BYTES.
            CallerGoneError: the client went away before its end.
        """
        self.is_begun = True
        async for chunk in self._exchange.chunks(MOST_UPLOAD_BYTES):
            yield chunk


async def pass_on(
    exchange: HttpExchange,
    manager: Manager,
    endpoint: Endpoint,
    scopes: Scopes,
    max_wait_s: float,
    standing: Standing,
) -> None:
    """Carry a call to the first account that speaks its dialect, where what is stored is kept.

    What was stored by a call of another kind (an answer of `responses`) may be at another one: who asks for it, and is
    told that it is not there, is led on.

    Raises:
        NotPassedError: no account could take it.
        HeadgateError: nothing of an answer has gone to the client yet.
    """
    if exchange.method not in _METHODS:
        raise NotPassedError(
            f"{exchange.method[:20]} is not passed on; methods that are: {', '.join(sorted(_METHODS))}"
        )
    accounts = [account.name for account in manager.pool.speaking(endpoint.dialect)]
    if not accounts:
        raise NotPassedError(
            f"{endpoint.path[:200]} is asked of a provider that speaks as {endpoint.dialect} does, and no account "
            "does; say whose it is with an anthropic-version header, or configure such an account"
        )
    upload = Upload(exchange)
    may_be_elsewhere = exchange.method in _ASKED_EVERYWHERE and endpoint.name in _MIGHT_BE_ELSEWHERE
    if not may_be_elsewhere or not upload.is_empty:  # a body comes once
        accounts = accounts[:1]
    stated_s = stated_wait_s(exchange.named.get(b"x-headgate-max-wait"))
    call = Call(
        model="",
        dialect=endpoint.dialect,
        endpoint=endpoint.name,
        input_tokens=_UNKNOWN_TOKENS if endpoint.metered else 0,
        max_output_tokens=0,
        scopes=scopes,
        standing=standing,
        max_wait_s=max_wait_s if stated_s is None else min(max_wait_s, stated_s),
        is_streamed=False,
        is_metered=False,
    )
    for number, account in enumerate(accounts):
        is_last = number == len(accounts) - 1
        there = replace(call, scopes=scopes._replace(account=account), id=call.id if is_last else f"{call.id}{number}")
        if await _pass_to(exchange, manager, there, None if upload.is_empty else upload, leads_on=not is_last):
            return


async def _pass_to(
    exchange: HttpExchange, manager: Manager, call: Call, upload: Upload | None, *, leads_on: bool
) -> bool:
    """Carry a call to its account and back; False if it is led on."""
    request = Request(
        exchange.method, exchange.target, exchange.headers, b"", call.id, Passage(), is_streamed=False, upload=upload
    )
    async with CancelledWithClient(exchange, reads=upload is not None), manager.carry(call, request) as carried:
        answer = carried.answer
        if leads_on and answer.status == HTTPStatus.NOT_FOUND:
            return False
        await exchange.start(answer.status, own_head(manager, carried, None))
        async for chunk in manager.read(carried):
            await exchange.write(chunk)
    await exchange.write(b"", more=False)
    return True
