"""Callers: who sent a request, and whom its calls belong to.

One rule: what a key says of its bearer cannot be overridden by a header; headers only add what the key leaves open.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

import msgspec

from headgate.adapters.providers.endpoints import Endpoint
from headgate.core.errors import CallerError
from headgate.core.scheduling import MOST_PRIORITY, Standing
from headgate.core.scopes import ScopeKind, Scopes, scope_name
from headgate.gateway.exchange import HttpExchange
from headgate.gateway.own_headers import tags_in
from headgate.gateway.terms import Terms, WhileWaiting
from headgate.ports import HashedKey
from headgate.runtime.keys import NotAllowedError
from headgate.runtime.manager import Manager

MOST_PROGRAM_TOKENS = 10**12
"""The largest guess that a header may state."""


class NoKeyError(CallerError):
    """The request carries no key of Headgate's, or one that is not in force."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request: a key's bearer, an administrator, or (key None) anybody on a gateway that is open."""

    key: HashedKey | None
    is_admin: bool = False


class KeyScopes(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a key's bearer is attributed to, how its calls stand among others, and what they may be.

    It is stored with the key. Without `models` (globs) or `endpoints` (names) they may be any.
    """

    team: str | None = None
    run: str | None = None
    agent: str | None = None
    tags: dict[str, str] = {}
    priority: int = 0
    interactive: bool = False
    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    while_waiting: WhileWaiting | None = None
    coalesce: bool = False
    batch_embeddings: bool = False


_NOBODY = KeyScopes()


@lru_cache(maxsize=1_000)
def _said(scopes: str) -> KeyScopes:
    """Read what is stored with a key; the same keys come again and again."""
    return msgspec.json.decode(scopes, type=KeyScopes)


async def identify(exchange: HttpExchange, manager: Manager, *, open_to_all: bool, admin_token: str | None) -> Caller:
    """Give who sent the request.

    Raises:
        NoKeyError: a key is needed and there is none, or it is not in force.
    """
    presented = presented_key(exchange)
    if presented is not None and admin_token is not None and _same(presented, admin_token):
        return Caller(None, is_admin=True)
    key = await manager.authenticate(presented) if presented is not None else None
    if key is not None:
        return Caller(key)
    if presented is not None and presented.startswith("hg-"):
        raise NoKeyError(
            "this Headgate key is unknown, has expired or was revoked; make one with `headgate keys create`"
        )
    if open_to_all and not await manager.needs_key():
        return Caller(None, is_admin=admin_token is None)
    raise NoKeyError("a Headgate key is needed here, in x-api-key or Authorization: Bearer; see `headgate keys create`")


def _same(presented: str, token: str) -> bool:
    return hmac.compare_digest(presented.encode("utf-8", "replace"), token.encode())


def presented_key(exchange: HttpExchange) -> str | None:
    """Give the key that a request carries, from `x-api-key` or else `Authorization: Bearer`."""
    key = exchange.header(b"x-api-key")
    if key:
        return key.strip()
    kind, _, token = (exchange.header(b"authorization") or "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else None


def scopes_of(caller: Caller, exchange: HttpExchange, configured: Mapping[str, KeyScopes]) -> Scopes:
    """Give whom a call belongs to.

    What the configuration says of a key of this name goes first, then what was stored with the key, then the headers.
    What a key's bearer says in headers is marked as claimed, lest it be charged to others who go by the same names.
    """
    key_name = caller.key.name if caller.key is not None else None
    owner = configured.get(key_name, _NOBODY) if key_name is not None else _NOBODY
    said = _said(caller.key.scopes) if caller.key is not None else _NOBODY
    stated = {**said.tags, **owner.tags}
    tags = {**_tags(exchange.header(b"x-headgate-tags")), **stated}
    scopes = Scopes(
        key=key_name,
        team=owner.team or said.team or _named(exchange, b"x-headgate-team"),
        run=said.run or _named(exchange, b"x-headgate-run"),
        agent=said.agent or _named(exchange, b"x-claude-code-agent-id", b"x-headgate-agent"),
        session=_named(exchange, b"x-claude-code-session-id", b"x-headgate-session"),
        parent=_named(exchange, b"x-claude-code-parent-agent-id", b"x-headgate-parent"),
        tags=tuple(sorted(tags.items())),
    )
    if caller.key is None:
        return scopes
    by_key = _claimed_by(caller.key)
    vouched = {
        "team": owner.team or said.team,
        "run": None if "run" in by_key else said.run,
        "agent": None if "agent" in by_key else said.agent,
        "session": None,
    }
    kinds = [kind for kind, value in vouched.items() if not value and getattr(scopes, kind) is not None]
    return scopes._replace(claimed=(*kinds, *(f"tag:{name}" for name, _ in scopes.tags if name not in stated)))


def standing_of(caller: Caller, exchange: HttpExchange, configured: Mapping[str, KeyScopes]) -> Standing:
    """Give how a call stands among others that wait.

    A header may say less than the key allows (`x-headgate-priority`, `x-headgate-class: batch`), never more; without a
    key it may say anything.
    """
    stated = exchange.header(b"x-headgate-priority")
    kind = (exchange.header(b"x-headgate-class") or "").strip().lower()
    if kind not in ("", "interactive", "batch"):
        raise CallerError(f"x-headgate-class: {kind[:40]!r} is no class; expected interactive or batch")
    priority = 0 if stated is None else _priority(stated)
    program_tokens = _program_tokens(exchange.header(b"x-headgate-program-tokens"))
    if caller.key is None:
        return Standing(priority, kind == "interactive", program_tokens)
    owner = configured.get(caller.key.name, _NOBODY)
    said = _said(caller.key.scopes)
    most = owner.priority or said.priority
    allowed = owner.interactive or said.interactive
    priority = most if stated is None else min(priority, most)
    return Standing(priority, allowed and kind != "batch", program_tokens)


def terms_of(caller: Caller, configured: Mapping[str, KeyScopes], usual: Terms) -> Terms:
    """Give on which terms a caller's calls are served: as the configuration says of its key, else as usual."""
    owner = configured.get(caller.key.name) if caller.key is not None else None
    if owner is None or (owner.while_waiting is None and not owner.coalesce and not owner.batch_embeddings):
        return usual
    heard = owner.while_waiting or usual.while_waiting
    return usual._replace(while_waiting=heard, coalesces=owner.coalesce, batches=owner.batch_embeddings)


def _program_tokens(stated: str | None) -> int | None:
    if stated is None:
        return None
    digits = stated.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(MOST_PROGRAM_TOKENS))):
        digits = "0"
    if not 0 < int(digits) <= MOST_PROGRAM_TOKENS:
        raise CallerError(
            f"x-headgate-program-tokens: {stated[:40]!r}; expected a whole number from 1 to {MOST_PROGRAM_TOKENS}"
        )
    return int(digits)


def _priority(stated: str) -> int:
    try:
        priority = int(stated)
    except ValueError:
        priority = MOST_PRIORITY + 1
    if not -MOST_PRIORITY <= priority <= MOST_PRIORITY:
        raise CallerError(
            f"x-headgate-priority: {stated[:40]!r}; expected a whole number from {-MOST_PRIORITY} to {MOST_PRIORITY}"
        )
    return priority


def check_endpoint(caller: Caller, endpoint: Endpoint, configured: Mapping[str, KeyScopes]) -> None:
    """Return if a key's bearer may call an endpoint.

    Raises:
        NotAllowedError: the list of the configuration, or of the key itself, leaves it out.
    """
    for said in _both(caller, configured):
        if said.endpoints and endpoint.name not in said.endpoints:
            raise NotAllowedError(
                f"this key may not call {endpoint.path[:200]} ({endpoint.name}); it may call: "
                f"{', '.join(said.endpoints)}"
            )


def check_model(caller: Caller, model: str, configured: Mapping[str, KeyScopes]) -> None:
    """Return if a key's bearer may call a model; raises as `check_endpoint`."""
    for said in _both(caller, configured):
        if said.models and not any(fnmatchcase(model, glob) for glob in said.models):
            raise NotAllowedError(f"this key may not call {model}; it may call: {', '.join(said.models)}")


def _both(caller: Caller, configured: Mapping[str, KeyScopes]) -> tuple[KeyScopes, ...]:
    if caller.key is None:
        return ()
    return configured.get(caller.key.name, _NOBODY), _said(caller.key.scopes)


def own_scopes(caller: Caller, configured: Mapping[str, KeyScopes]) -> Scopes:
    """Give what a key's bearer owns, whatever headers claim: what the configuration and the key itself say."""
    if caller.key is None:
        return Scopes()
    owner = configured.get(caller.key.name, _NOBODY)
    said = _said(caller.key.scopes)
    team = owner.team or said.team
    return Scopes(key=caller.key.name, run=said.run, agent=said.agent, team=team, claimed=_claimed_by(caller.key))


def _claimed_by(key: HashedKey) -> tuple[ScopeKind, ...]:
    """Give what a key says that holds only within something else.

    A fleet's agents are called alike in every run, and hold within theirs. A run that is named under another key is
    that key's, whose bearer vouches for nobody else's.
    """
    if not key.fleet:
        return ()
    return ("agent",) if key.parent is None else ("run", "agent")


def _named(exchange: HttpExchange, *names: bytes) -> str | None:
    for name in names:
        value = exchange.header(name)
        if value:
            return scope_name(value)
    return None


def _tags(header: str | None) -> dict[str, str]:
    """Give the tags that `own_headers` has found to be fit."""
    pairs = (tag.partition("=") for tag in tags_in(header or ""))
    return {name: value for name, _, value in pairs}
