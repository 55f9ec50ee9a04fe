"""Events over the control API: server-sent, as they happen, for as long as the client listens.

One rule: a key's bearer hears of its own calls and limits and of nobody else's.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, NoReturn

import msgspec
from msgspec import Meta

from headgate.core.errors import CallerGoneError
from headgate.gateway.asked import Asked
from headgate.gateway.exchange import HttpExchange
from headgate.gateway.guarded import GUARDED
from headgate.gateway.operations import Operation
from headgate.runtime.feed import Event
from headgate.runtime.manager import Manager

EVENTS_PATH = "/api/v1/events"

ALIVE_EVERY_S = 15.0
"""A comment is sent so often when nothing happens, so that no proxy takes the connection for dead."""

_HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), *GUARDED]


async def tell_events(asked: Asked) -> NoReturn:
    """Answer `GET /api/v1/events`; raises as `stream_events`."""
    await stream_events(asked.exchange, asked.manager, asked.view.has_event)


async def stream_events(exchange: HttpExchange, manager: Manager, is_visible: Callable[[Event], bool]) -> NoReturn:
    """Send every event that the caller may see until it goes away.

    Raises:
        CallerGoneError: it went away.
        LimitError: too many follow already.
    """
    with manager.feed.follow() as events:
        await exchange.start(200, _HEADERS)
        await exchange.write(b": headgate\n\n")
        writing = asyncio.create_task(_write(exchange, events, is_visible), name="events")
        leaving = asyncio.create_task(_left(exchange), name="events: client")
        try:
            await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writing, leaving):
                task.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)
    raise CallerGoneError("the client stopped listening")


async def _write(exchange: HttpExchange, events: AsyncIterator[Event], is_visible: Callable[[Event], bool]) -> None:
    following = asyncio.ensure_future(anext(events))
    try:
        while True:
            done, _ = await asyncio.wait((following,), timeout=ALIVE_EVERY_S)
            if not done:
                await exchange.write(b": alive\n\n")
                continue
            event = following.result()
            following = asyncio.ensure_future(anext(events))
            if is_visible(event):
                await exchange.write(event_bytes(event))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def _left(exchange: HttpExchange) -> None:
    while (await exchange.receive())["type"] != "http.disconnect":
        pass


def event_bytes(event: Event) -> bytes:
    """Give an event as a server sends it."""
    scopes = event.scopes
    whose = {
        kind: value
        for kind in ("account", "key", "team", "run", "agent", "session")
        if (value := getattr(scopes, kind)) is not None
    }
    shape: dict[str, Any] = {"at": event.at_s, **whose, **event.facts}
    return b"event: %b\ndata: %b\n\n" % (event.kind.encode(), msgspec.json.encode(shape))


TELL_EVENTS = Operation(
    tell_events,
    Annotated[str, Meta(description="Server-sent events: `event` names what happened, `data` is JSON.")],
    "What happens, as it happens",
    fails=(429,),
    stream=True,
)
