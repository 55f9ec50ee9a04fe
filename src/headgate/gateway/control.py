"""The control API: which path is answered by what, for whom, and what is told of it.

One rule: everything that holds of all paths is done here: the path and its words, the parameters, what only an
administrator may do. What a key's bearer may see is `asked.View`'s affair; questions and orders have a file each.
"""

import asyncio
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from headgate.core.scopes import fit
from headgate.gateway.accounts import ACCOUNTS_PATH, TELL_ACCOUNTS
from headgate.gateway.asked import Asked, Hosts, Reload, View
from headgate.gateway.budgets import BUDGETS_PATH, TELL_BUDGETS
from headgate.gateway.callers import Caller, KeyScopes, own_scopes
from headgate.gateway.events import EVENTS_PATH, TELL_EVENTS
from headgate.gateway.exchange import HttpExchange
from headgate.gateway.guarded import GUARDED
from headgate.gateway.lending import END_KEY, KEYS_PATH, LEND_KEYS
from headgate.gateway.limits_now import LIMITS_PATH, TELL_LIMITS
from headgate.gateway.openapi import WORDS, Served, document
from headgate.gateway.operations import Operation
from headgate.gateway.outlook import CAPACITY_PATH, FORECAST_PATH, TELL_CAPACITY, TELL_FORECAST
from headgate.gateway.parameters import parameters
from headgate.gateway.queue_now import QUEUE_PATH, TELL_QUEUE
from headgate.gateway.reloading import RELOAD, RELOAD_PATH
from headgate.gateway.reserving import END_RESERVATION, MAKE_RESERVATION, RESERVATIONS_PATH, TELL_RESERVATIONS
from headgate.gateway.run_books import RUN_PATH, TELL_ATTEMPTS, TELL_LIMITS_MET
from headgate.gateway.status import STATUS_PATH, TELL_STATUS
from headgate.gateway.steering import CHANGE_SCHEDULING, SCHEDULER_PATH, SHOW_SCHEDULING
from headgate.gateway.usage import TELL_USAGE, USAGE_PATH
from headgate.runtime.keys import NotAllowedError
from headgate.runtime.manager import Manager

_HEADERS = [(b"content-type", b"application/json"), (b"cache-control", b"no-store"), *GUARDED]


def methods_of(path: str) -> tuple[str, ...]:
    """Give the methods that a path of the control API takes; none if it is not one."""
    found = _route(path)
    if found is None:
        return ()
    operations = found[0].operations
    return (*operations, "HEAD") if "GET" in operations and not operations["GET"].stream else tuple(operations)


async def answer_control(
    exchange: HttpExchange,
    manager: Manager,
    caller: Caller,
    keys: Mapping[str, KeyScopes],
    reload_config: Reload | None = None,
    hosts: Hosts = dict,
) -> None:
    """Answer a caller who was identified, at a path and with a method that `methods_of` has.

    `keys` is what the configuration says of keys, by name; `reload_config` reads it again; `hosts` tells how
    connections are used.

    Raises:
        CallerError: what was sent cannot be understood, or is not the caller's to ask.
    """
    found = _route(exchange.path)
    assert found is not None, "the caller asked methods_of"
    route, named = found
    operation = route.operations["GET" if exchange.method == "HEAD" else exchange.method]
    words = parameters(exchange.query.decode("ascii", "replace"), [each.name for each in operation.parameters])
    if operation.only_admin is not None and not caller.is_admin:
        raise NotAllowedError(f"only an administrator may {operation.only_admin}: use [server] admin_token")
    view = View(caller, fit(own_scopes(caller, keys)))
    shape = await operation.handler(Asked(exchange, manager, caller, view, words, named, keys, reload_config, hosts))
    await exchange.answer(operation.status, _HEADERS, msgspec.json.encode(shape))


async def _openapi(_asked: Asked) -> dict[str, Any]:
    # Tens of milliseconds, for which no stream should stand still.
    return await asyncio.to_thread(_document)


@lru_cache(maxsize=1)
def _document() -> dict[str, Any]:
    return document(_ROUTES)


_ROUTES = (
    Served(USAGE_PATH, {"GET": TELL_USAGE}),
    Served(LIMITS_PATH, {"GET": TELL_LIMITS}),
    Served(QUEUE_PATH, {"GET": TELL_QUEUE}),
    Served(STATUS_PATH, {"GET": TELL_STATUS}),
    Served(ACCOUNTS_PATH, {"GET": TELL_ACCOUNTS}),
    Served(FORECAST_PATH, {"GET": TELL_FORECAST}),
    Served(CAPACITY_PATH, {"GET": TELL_CAPACITY}),
    Served(BUDGETS_PATH, {"GET": TELL_BUDGETS}),
    Served(RESERVATIONS_PATH, {"GET": TELL_RESERVATIONS, "POST": MAKE_RESERVATION}),
    Served(f"{RESERVATIONS_PATH}/ID", {"DELETE": END_RESERVATION}),
    Served(EVENTS_PATH, {"GET": TELL_EVENTS}),
    Served(SCHEDULER_PATH, {"GET": SHOW_SCHEDULING, "PUT": CHANGE_SCHEDULING}),
    Served(RELOAD_PATH, {"POST": RELOAD}),
    Served(KEYS_PATH, {"POST": LEND_KEYS}),
    Served(f"{KEYS_PATH}/ID", {"DELETE": END_KEY}),
    Served(f"{RUN_PATH}/attempts", {"GET": TELL_ATTEMPTS}),
    Served(f"{RUN_PATH}/limits", {"GET": TELL_LIMITS_MET}),
    Served("/api/v1/openapi.json", {"GET": Operation(_openapi, dict[str, Any], "This document")}),
)
PATHS = tuple(route.path for route in _ROUTES)
"""All of them, as people write them."""


def _pattern(path: str) -> re.Pattern[str]:
    found = {name: f"(?P<{word.name}>{word.pattern})" for name, word in WORDS.items()}
    return re.compile("/".join(found.get(part, re.escape(part)) for part in path.split("/")))


_PATTERNS = [(_pattern(route.path), route) for route in _ROUTES]


def _route(path: str) -> tuple[Served, dict[str, str]] | None:
    """Give what is served at a path, with the words that stand for its variable ones."""
    matches = ((route, pattern.fullmatch(path)) for pattern, route in _PATTERNS)
    return next(((route, match.groupdict()) for route, match in matches if match is not None), None)
