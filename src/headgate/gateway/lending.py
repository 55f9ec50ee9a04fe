"""Lending: the keys of fleets that run elsewhere, one for each agent, over the control API.

One rule: a key is made under its asker's, sees no more and ends no later; its secret is told once, to who asked for it.
"""

from collections import Counter
from typing import Annotated, Literal, NotRequired, TypedDict

import msgspec

from headgate.core.errors import CallerError
from headgate.core.scopes import MOST_NAME_CHARS, scope_name, unfit_name
from headgate.gateway.asked import Asked, NothingThereError
from headgate.gateway.operations import Instant, Operation, Unanswered
from headgate.gateway.parameters import rfc3339
from headgate.runtime.keys import MOST_LENT_S, Holder

KEYS_PATH = "/api/v1/keys"

MOST_KEYS_AT_ONCE = 100
MOST_WISH_BYTES = 128 * 1024


class KeysWish(msgspec.Struct, forbid_unknown_fields=True):
    """What is asked of `POST /api/v1/keys`: a key for each of these agents of a run."""

    run: Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_NAME_CHARS)]
    agents: Annotated[
        list[Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_NAME_CHARS)]],
        msgspec.Meta(max_length=MOST_KEYS_AT_ONCE),
    ]
    expires_in_s: Annotated[float, msgspec.Meta(gt=0, le=MOST_LENT_S)] = 3_600.0


class LentKeyTold(TypedDict):
    """A key of one agent; its secret is told once, here."""

    id: str
    name: str
    run: str
    agent: str
    key: str
    expires_at: Instant | None


class LentKeysTold(TypedDict):
    """The keys that were made, and the name of the key they were made under."""

    under: str | None
    keys: list[LentKeyTold]
    unanswered: NotRequired[Unanswered]


class KeyEnded(TypedDict):
    """A key that has ended."""

    id: str
    ended: Literal[True]
    unanswered: NotRequired[Unanswered]


async def lend_keys(asked: Asked) -> LentKeysTold:
    """Make a key for each agent that a runner elsewhere names.

    Raises:
        CallerError: what was sent cannot be understood, or the caller may not.
    """
    manager, caller = asked.manager, asked.caller
    body = await asked.exchange.body(MOST_WISH_BYTES)
    try:
        wish = msgspec.json.decode(body, type=KeysWish)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CallerError(
            f'{error}; expected {{"run": "...", "agents": ["..."], "expires_in_s": 3600}} with at most '
            f"{MOST_KEYS_AT_ONCE} agents, {MOST_NAME_CHARS} characters a name and {MOST_LENT_S:.0f} s"
        ) from error
    _check_names(wish)
    run = wish.run
    holders = [Holder(run, agent, scope_name(f"{run}/{agent}")) for agent in wish.agents]
    made = await manager.keys.lend(caller.key, holders, wish.expires_in_s)
    keys: list[LentKeyTold] = [
        {
            "id": key.stored.id,
            "name": key.stored.name,
            "run": run,
            "agent": agent,
            "key": key.secret,
            "expires_at": rfc3339(key.stored.expires_s),
        }
        for agent, key in zip(wish.agents, made, strict=True)
    ]
    return {"under": None if caller.key is None else caller.key.name, "keys": keys}


def _check_names(wish: KeysWish) -> None:
    """Raise CallerError for a name that no header could carry, or that stands there twice."""
    for what, name in (("run", wish.run), *((f"agents[{place}]", agent) for place, agent in enumerate(wish.agents))):
        unfit = unfit_name(name)
        if unfit is not None:
            raise CallerError(f"{what}={name[:50]!r}: {unfit}")
    doubled = next((agent for agent, times in Counter(wish.agents).items() if times > 1), None)
    if doubled is not None:
        raise CallerError(f"agents: {doubled[:50]!r} stands there twice; expected each agent once, for it gets one key")


async def end_key(asked: Asked) -> KeyEnded:
    """End a key that was made so.

    Raises:
        NothingThereError: none of the caller's is of this id, or it has ended.
    """
    key_id = asked.named["id"]
    if not await asked.manager.keys.take_back(key_id, asked.caller.key):
        raise NothingThereError(f"no fleet's key {key_id!r} of yours is in force; it may have ended already")
    return {"id": key_id, "ended": True}


LEND_KEYS = Operation(lend_keys, LentKeysTold, "Keys for the agents of a run elsewhere", takes=KeysWish, makes=True)
END_KEY = Operation(end_key, KeyEnded, "End one of them", fails=(404,))
