"""The simulated provider as an ASGI application: routes, control endpoints, and nothing of what happens to a call.

One rule: everything that is counted can be read and reset under `/_provider/`, which no vendor has.
Serve it with uvicorn, or call it in process; it holds all of its state and starts nothing by itself.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from headgate.testing.provider import anthropic_wire, openai_wire
from headgate.testing.provider.anthropic_wire import AnthropicMessages, AnthropicVendor
from headgate.testing.provider.dialect import Dialect, Headers, Vendor
from headgate.testing.provider.exchange import BodyTooLargeError, ClientGoneError, Exchange, Receive, Scope, Send
from headgate.testing.provider.faults import FaultChooser
from headgate.testing.provider.openai_chat import OpenAIChat
from headgate.testing.provider.openai_responses import OpenAIResponses
from headgate.testing.provider.openai_wire import OpenAIVendor
from headgate.testing.provider.serving import Service
from headgate.testing.provider.settings import Faults, ProviderSettings

__all__ = ["SimulatedProvider"]

_Route = Callable[[Exchange], Awaitable[None]]

_JSON: Headers = [(b"content-type", b"application/json")]
_CONTROL_BODY_LIMIT_BYTES = 64 * 1024
_CALLS_PATH = "/_provider/calls/"
_MODELS_PATH = "/v1/models/"
# A fixed birthday for every model, so that answers do not depend on the day.
_MODELS_CREATED_S = 1_750_000_000


class SimulatedProvider:
    """An ASGI 3 application that speaks the vendors' wire formats and enforces their limits.

    `wall_s` gives the wall time that headers tell; all waiting and refilling follows the event loop's own clock, so
    that the provider runs in virtual time too. It may be used by one event loop at a time.
    """

    def __init__(self, settings: ProviderSettings | None = None, *, wall_s: Callable[[], float] = time.time) -> None:
        # A reset replaces the service, so no route may hold one.
        self._settings = ProviderSettings() if settings is None else settings
        self._wall_s = wall_s
        self._started_s: float | None = None
        self._service = Service(self._settings, wall_s)
        self._routes: dict[tuple[str, str], _Route] = {
            ("POST", "/v1/messages"): self._answer(AnthropicMessages()),
            ("POST", "/v1/messages/count_tokens"): self._count_tokens,
            ("POST", "/v1/chat/completions"): self._answer(OpenAIChat()),
            ("POST", "/v1/responses"): self._answer(OpenAIResponses()),
            ("POST", "/v1/embeddings"): self._embed,
            ("GET", "/v1/models"): self._list_models,
            ("GET", "/"): self._root,
            ("HEAD", "/"): self._root,
            ("GET", "/_provider/usage"): self._usage,
            ("GET", "/_provider/faults"): self._faults,
            ("POST", "/_provider/faults"): self._set_faults,
            ("POST", "/_provider/reset"): self._reset,
        }
        self._paths = {path for _, path in self._routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection scope."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            if self._started_s is None:
                self._started_s = asyncio.get_running_loop().time()
            # Whoever left before the answer was sent wants no answer, and no server should hear of it.
            with contextlib.suppress(ClientGoneError):
                await self._dispatch(Exchange(scope, receive, send))

    def usage(self) -> dict[str, Any]:
        """Give the same as `GET /_provider/usage`: what was received, served, refused, charged; exact whole numbers."""
        started_s = self._started_s or 0.0
        credentials = self._service.credentials.all()
        buckets = [told for credential in credentials for told in credential.buckets(started_s)]
        return {**self._service.books.as_dict(), "buckets": buckets}

    def call(self, call_id: str) -> dict[str, Any] | None:
        """Give the same as `GET /_provider/calls/{id}`: what became of a call, or None when it is not known."""
        entry = self._service.books.call(call_id)
        return None if entry is None else entry.as_dict()

    def set_faults(self, faults: Faults) -> None:
        """Replace the faults from the next call on."""
        self._service.faults = FaultChooser(faults)

    def reset(self) -> None:
        """Forget everything counted, charged and cached; calls that are running end uncounted, faults go back too."""
        self._started_s = None
        self._service = Service(self._settings, self._wall_s)

    async def _dispatch(self, exchange: Exchange) -> None:
        path = exchange.path
        route = self._routes.get((exchange.method, path))
        if route is not None:
            await route(exchange)
        elif exchange.method == "GET" and path.startswith(_CALLS_PATH):
            await self._tell_call(exchange, path.removeprefix(_CALLS_PATH))
        elif exchange.method == "GET" and path.startswith(_MODELS_PATH):
            await self._tell_model(exchange, path.removeprefix(_MODELS_PATH))
        else:
            status = 405 if path in self._paths else 404
            message = f"{exchange.method} {path} is not served here"
            await exchange.respond(status, _JSON, _vendor(exchange).error(status, message, ""))

    def _answer(self, dialect: Dialect) -> _Route:
        async def answer(exchange: Exchange) -> None:
            await self._service.answer(exchange, dialect)

        return answer

    async def _count_tokens(self, exchange: Exchange) -> None:
        await self._service.count_tokens(exchange)

    async def _embed(self, exchange: Exchange) -> None:
        await self._service.embed(exchange)

    async def _root(self, exchange: Exchange) -> None:
        body = b'{"service":"headgate simulated provider"}'
        await exchange.respond(200, _JSON, b"" if exchange.method == "HEAD" else body)

    async def _list_models(self, exchange: Exchange) -> None:
        if self._service.credentials.identify(exchange.headers) is None:
            await exchange.respond(401, _JSON, _vendor(exchange).error(401, "invalid x-api-key", ""))
            return
        names = [name for name in self._settings.models if not any(mark in name for mark in "*?[")]
        write = anthropic_wire.model_list if _wants_anthropic(exchange) else openai_wire.model_list
        await exchange.respond(200, _JSON, write(names, _MODELS_CREATED_S))

    async def _tell_model(self, exchange: Exchange, name: str) -> None:
        if name not in self._settings.models:
            await exchange.respond(404, _JSON, _vendor(exchange).error(404, f"model: {name}", ""))
            return
        write = anthropic_wire.model_card if _wants_anthropic(exchange) else openai_wire.model_card
        await exchange.respond(200, _JSON, write(name, _MODELS_CREATED_S))

    async def _usage(self, exchange: Exchange) -> None:
        await exchange.respond(200, _JSON, msgspec.json.encode(self.usage()))

    async def _tell_call(self, exchange: Exchange, call_id: str) -> None:
        told = self.call(call_id)
        if told is None:
            await exchange.respond(404, _JSON, _control_error(f"no call with the id {call_id!r} is known"))
        else:
            await exchange.respond(200, _JSON, msgspec.json.encode(told))

    async def _faults(self, exchange: Exchange) -> None:
        await exchange.respond(200, _JSON, msgspec.json.encode(self._service.faults.settings))

    async def _set_faults(self, exchange: Exchange) -> None:
        try:
            faults = msgspec.json.decode(await exchange.body(_CONTROL_BODY_LIMIT_BYTES), type=Faults, strict=True)
        except ClientGoneError:
            return
        except (BodyTooLargeError, msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            await exchange.respond(400, _JSON, _control_error(str(error) or "the body is too large"))
            return
        self.set_faults(faults)
        await self._faults(exchange)

    async def _reset(self, exchange: Exchange) -> None:
        self.reset()
        await exchange.respond(200, _JSON, b"{}")


def _wants_anthropic(exchange: Exchange) -> bool:
    return b"anthropic-version" in exchange.headers or b"x-api-key" in exchange.headers


def _vendor(exchange: Exchange) -> Vendor:
    if exchange.path.startswith("/v1/messages") or _wants_anthropic(exchange):
        return AnthropicVendor()
    return OpenAIVendor()


def _control_error(message: str) -> bytes:
    return msgspec.json.encode({"error": {"message": message}})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return
