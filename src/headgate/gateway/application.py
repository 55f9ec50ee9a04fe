"""The gateway as an ASGI application: which path goes where, and how an error looks from outside.

One rule: every answer that is Headgate's own has the shape of the endpoint's provider (on `/api/` one shape for all),
and says what to do next.
"""

import logging
import secrets
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from headgate.adapters.providers.call_head import read_call
from headgate.adapters.providers.endpoints import Endpoint, dialect_of, endpoint_of
from headgate.adapters.providers.refusals import RefusalKind, error_answer
from headgate.adapters.sqlite.database import StoreStats
from headgate.adapters.switchboard import UnansweredError
from headgate.core.errors import (
    BudgetError,
    CallerError,
    CallerGoneError,
    DeadlineError,
    HeadgateError,
    LimitError,
    ProviderError,
    RuledOutError,
    ShuttingDownError,
    UnknownModelError,
    UnservedError,
)
from headgate.core.retries import is_late
from headgate.core.scopes import Scopes
from headgate.core.usage import Dialect
from headgate.gateway.asked import Hosts, NothingThereError, Reload
from headgate.gateway.batched import relay_batched
from headgate.gateway.callers import (
    Caller,
    KeyScopes,
    NoKeyError,
    check_endpoint,
    check_model,
    identify,
    scopes_of,
    standing_of,
    terms_of,
)
from headgate.gateway.control import PATHS, answer_control, methods_of
from headgate.gateway.exchange import BodyTooLargeError, HttpExchange, Receive, Send
from headgate.gateway.guarded import GUARDED
from headgate.gateway.nearby import check_host, check_nearby, check_order
from headgate.gateway.own_headers import check_own_headers
from headgate.gateway.passing import NotPassedError, pass_on
from headgate.gateway.relay import Meant, relay_metered, relay_unmetered
from headgate.gateway.shared import relay_shared
from headgate.gateway.terms import USUAL_TERMS, Terms
from headgate.runtime.keys import NotAllowedError
from headgate.runtime.manager import Manager

log = logging.getLogger("headgate.gateway")

RESTART_S = 5.0
"""When a call that was refused because this gateway ends may come again: another has usually begun by then."""

_CHANGING_NOTHING = frozenset({"GET", "HEAD", "OPTIONS"})

_JSON = [(b"content-type", b"application/json"), *GUARDED]


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """How the gateway meets the world.

    `open_to_all` lets calls in without a key while none was made to stay. `allowed_hosts` are patterns of names beside
    this machine's own by which it may be called; where there are any, by no others. `keys` says by name whose a key is.
    `reload` reads the configuration again and says what has changed; None where nothing can be. `hosts` tells of the
    connections to providers, `store` how the store is used.
    """

    max_body_bytes: int = 32 * 1024 * 1024
    max_wait_s: float = 600.0
    open_to_all: bool = True
    admin_token: str | None = field(default=None, repr=False)
    allowed_hosts: Sequence[str] = ()
    keys: Mapping[str, KeyScopes] = field(default_factory=dict)
    reload: Reload | None = None
    hosts: Hosts = dict
    store: StoreStats = field(default_factory=StoreStats)
    terms: Terms = USUAL_TERMS


class Gateway:
    """The ASGI application over a manager."""

    def __init__(self, manager: Manager, settings: GatewaySettings) -> None:
        """Serve `manager`; the caller starts and closes it."""
        self._manager = manager
        self._settings = settings

    def take_keys(self, keys: Mapping[str, KeyScopes]) -> None:
        """Go by what the configuration says of keys now."""
        self._settings = replace(self._settings, keys=keys)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = HttpExchange.of(scope, receive, send)
        try:
            await self._answer(exchange)
        except CallerGoneError:
            return
        except HeadgateError as error:
            await self._refuse(exchange, error)
        except AbortedError:
            raise
        except Exception:  # the boundary of a request: whatever it was, the client gets an error that it can read
            log.exception("%s %s failed", exchange.method, exchange.path[:200])
            await self._refuse(exchange, InternalError("Headgate failed; its log says how"))

    async def _answer(self, exchange: HttpExchange) -> None:
        endpoint = endpoint_of(exchange.path, exchange.headers, exchange.method)
        if endpoint is not None:
            await self._relay(exchange, endpoint)
        elif methods := methods_of(exchange.path):
            caller = await self._identify(exchange)
            if caller.key is None and not caller.is_admin:
                raise NoKeyError("this needs the admin token, or a Headgate key, which sees its own")
            if exchange.method not in methods:
                raise WrongMethodError(exchange, methods[0])
            said = self._settings
            await answer_control(exchange, self._manager, caller, said.keys, said.reload, said.hosts)
        elif exchange.path in {"/", "/healthz", "/readyz"}:
            await self._probe(exchange)
        elif exchange.path == "/metrics":
            await self._tell_metrics(exchange)
        else:
            raise NoSuchPathError(
                f"there is no {exchange.path[:200]} here; served are /v1/messages, /v1/messages/count_tokens, "
                "/v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings, /v1/models, what else providers "
                f"have below /v1/, and {', '.join(PATHS)}"
            )

    async def _relay(self, exchange: HttpExchange, endpoint: Endpoint) -> None:
        if exchange.method != endpoint.method:
            raise WrongMethodError(exchange, endpoint.method)
        caller = await self._identify(exchange)
        check_own_headers(exchange)
        check_endpoint(caller, endpoint, self._settings.keys)
        if endpoint.passes:
            scopes, max_wait_s = self._scopes_of(caller, exchange), self._settings.max_wait_s
            standing = standing_of(caller, exchange, self._settings.keys)
            await pass_on(exchange, self._manager, endpoint, scopes, max_wait_s, standing)
            return
        body = await exchange.body(self._settings.max_body_bytes, raised_by="max_body_bytes under [server]")
        head = read_call(endpoint, exchange.headers, body) if endpoint.method == "POST" else None
        if head is not None:
            check_model(caller, head.model, self._settings.keys)
        if head is not None and endpoint.metered:
            scopes = self._scopes_of(caller, exchange)
            standing = standing_of(caller, exchange, self._settings.keys)
            terms = terms_of(caller, self._settings.keys, self._settings.terms)
            meant = Meant(endpoint, head, body)
            if terms.batches and endpoint.name == "embeddings":
                relay = relay_batched
            else:
                relay = relay_shared if terms.coalesces and not head.stream else relay_metered
            await relay(exchange, self._manager, meant, scopes, self._settings.max_wait_s, standing, terms)
        else:
            await relay_unmetered(exchange, self._manager, endpoint, body, None if head is None else head.model)

    def _scopes_of(self, caller: Caller, exchange: HttpExchange) -> Scopes:
        return scopes_of(caller, exchange, self._settings.keys)

    async def _identify(self, exchange: HttpExchange) -> Caller:
        token = self._settings.admin_token
        caller = await identify(exchange, self._manager, open_to_all=self._settings.open_to_all, admin_token=token)
        allowed = self._settings.allowed_hosts
        if allowed:
            check_host(exchange, allowed)
        if caller.key is None and (token is None or not caller.is_admin):
            check_nearby(exchange, allowed)
            if exchange.path.startswith("/api/") and exchange.method not in _CHANGING_NOTHING:
                check_order(exchange)
        return caller

    async def _probe(self, exchange: HttpExchange) -> None:
        if exchange.method not in {"GET", "HEAD"}:
            raise WrongMethodError(exchange, "GET")
        if exchange.path == "/readyz":
            await self._manager.check()
        shape = {"service": "headgate", "status": "ok"}
        await exchange.answer(200, _JSON, msgspec.json.encode(shape))

    async def _tell_metrics(self, exchange: HttpExchange) -> None:
        if exchange.method not in {"GET", "HEAD"}:
            raise WrongMethodError(exchange, "GET")
        caller = await self._identify(exchange)
        if not caller.is_admin:
            raise NotAllowedError("metrics are of all keys: this needs the admin token")
        from headgate.gateway.metrics import CONTENT_TYPE, metrics  # noqa: PLC0415 - its library takes a tenth of a second

        await exchange.answer(
            200,
            [(b"content-type", CONTENT_TYPE), *GUARDED],
            await metrics(self._manager, self._settings.hosts, self._settings.store),
        )

    async def _refuse(self, exchange: HttpExchange, error: HeadgateError) -> None:
        kind = _kind_of(error)
        if exchange.kept_open is not None and not exchange.ended:
            # All that has gone is Headgate's own, so that the client can still be told in so many words.
            event = exchange.kept_open.error_event(kind, str(error), f"req_{secrets.token_hex(10)}")
            await exchange.write(event, more=False)
            return
        if exchange.started:
            # The head has gone: all that is left to say is that the body is not whole.
            log.warning("an answer broke off: %s", error)
            raise AbortedError(str(error)) from error
        if kind in {"internal", "overloaded"}:
            log.error("%s %s: %s", exchange.method, exchange.path[:200], error)
        retry_after_s = _retry_after_s(error)
        request_id = f"req_{secrets.token_hex(10)}"
        status, headers, body = error_answer(
            _dialect(exchange),
            kind,
            str(error),
            retry_after_s=retry_after_s,
            request_id=request_id,
        )
        if isinstance(error, WrongMethodError):
            headers.append((b"allow", error.allowed.encode()))
        headers = [*((name, value) for name, value in headers if name != b"content-length"), *GUARDED]
        await exchange.answer(status, headers, body)


class AbortedError(Exception):
    """Raised into the server, which then cuts the connection, so that a half answer cannot be taken for a whole one."""


class InternalError(HeadgateError):
    """Our own fault."""


class NoSuchPathError(CallerError):
    """Nothing is served at this path."""


class WrongMethodError(CallerError):
    """The path is served, but not for this method."""

    def __init__(self, exchange: HttpExchange, allowed: str) -> None:
        """Name the method that is."""
        super().__init__(f"{exchange.method} is not served at {exchange.path[:200]}; use {allowed}")
        self.allowed = allowed


def _dialect(exchange: HttpExchange) -> Dialect:
    """Give whose shape an error has: the control API's own is Anthropic's, whatever the client sends elsewhere."""
    return "anthropic" if exchange.path.startswith("/api/") else dialect_of(exchange.path, exchange.headers)


def _retry_after_s(error: HeadgateError) -> float | None:
    match error:
        case LimitError():
            return error.retry_after_s
        case ShuttingDownError():
            return RESTART_S
        case _:
            return None


def _kind_of(error: HeadgateError) -> RefusalKind:  # noqa: C901 - one line for each family of errors
    match error:
        case NoKeyError():
            return "authentication"
        case BodyTooLargeError():
            return "too_large"
        case WrongMethodError():
            return "method"
        case NoSuchPathError() | NothingThereError() | NotPassedError() | UnservedError():
            return "not_found"
        case NotAllowedError():
            return "permission"
        case UnknownModelError():
            return "unknown_model"
        case CallerError():
            return "invalid_request"
        case BudgetError() | RuledOutError(retry_after_s=None):
            return "budget_spent"
        case DeadlineError() | LimitError():
            return "rate_limited"
        case ShuttingDownError() | UnansweredError():
            return "overloaded"
        case ProviderError():
            return "upstream_timeout" if is_late(error.failure) else "upstream_failed"
        case _:
            return "internal"
