"""Keys that Headgate hands out: made, checked, ended.

One rule: a secret is shown once and kept only as its SHA-256 (it has 256 bits of its own, so a slow hash would add
nothing); it is compared in constant time. What a key may do is in its limits, which the core applies.
"""

import hashlib
import hmac
import json
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from headgate.core.errors import CallerError
from headgate.ports import Clock, HashedKey, KeyStore

PREFIX = "hg"
CACHED_S = 1.0
"""How long a key that was found is trusted before the store is asked again: another process may have revoked it."""
MOST_CACHED = 10_000

MOST_LENT = 100_000
"""Fleet's keys in force under one key: more than agents can be at work, with those that killed runners left behind."""
MOST_LENT_S = 7 * 86_400.0
"""How long a fleet's key lasts at the most: one of a runner that was killed ends by itself."""

MOST_GRACE_S = 30 * 86_400.0
"""How long a key that was replaced may still let its bearer in: one that should end at all ends within a month."""


class NotAllowedError(CallerError):
    """The key is in force, but it may not do this."""


class Holder(NamedTuple):
    """Whom a fleet's key is for; `name` is the key's own, where it is made under none."""

    run: str
    agent: str
    name: str


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to hand out: `secret` is shown now and never again."""

    secret: str = field(repr=False)
    stored: HashedKey


def make_key(
    name: str,
    now_s: float,
    *,
    limits: str = "[]",
    scopes: str = "{}",
    expires_s: float | None = None,
    fleet: bool = False,
    parent: str | None = None,
) -> NewKey:
    """Make a key; it counts once its stored half was added to a store."""
    key_id, secret = secrets.token_hex(6), secrets.token_hex(32)
    stored = HashedKey(
        key_id,
        name,
        _digest(secret),
        now_s,
        limits=limits,
        scopes=scopes,
        expires_s=expires_s,
        fleet=fleet,
        parent=parent,
    )
    return NewKey(f"{PREFIX}-{key_id}-{secret}", stored)


class Keys:
    """The keys of a store, with a short memory so that a call need not ask the store."""

    def __init__(self, store: KeyStore, clock: Clock) -> None:
        """Ask `store`; nothing is read yet."""
        self._store = store
        self._clock = clock
        self._standing: tuple[float, bool] | None = None
        self._cached: OrderedDict[str, tuple[float, HashedKey | None]] = OrderedDict()

    async def add(self, keys: Sequence[HashedKey]) -> None:
        """Let these keys in."""
        await self._store.add(keys)
        for key in keys:
            self._cached.pop(key.id, None)
        self._standing = None

    async def lend(self, parent: HashedKey | None, holders: Sequence[Holder], life_s: float) -> list[NewKey]:
        """Make keys for a fleet's agents under a key, or (None) under none, and let them in; all or none.

        They are attributed to and limited by what `parent` is, and end with it.

        Raises:
            NotAllowedError: `parent` is a fleet's key itself.
            CallerError: there would be more than `MOST_LENT`.
        """
        if parent is not None and parent.fleet:
            raise NotAllowedError(
                "the key of a fleet's agent makes no keys; use the key that the fleet was started with"
            )
        now_s = self._clock.now_s()
        in_force_now = await self._store.prune_fleet(None if parent is None else parent.id, now_s)
        # Two processes that count at once may pass the bound by one call's keys each: it bounds the store, no budget.
        if in_force_now + len(holders) > MOST_LENT:
            raise CallerError(
                f"{in_force_now:,} fleet's keys are in force here and {len(holders):,} more were asked for; at most "
                f"{MOST_LENT:,} may be: end some, or let them expire"
            )
        expires_s = now_s + min(life_s, MOST_LENT_S)
        if parent is not None and parent.expires_s is not None:
            expires_s = min(expires_s, parent.expires_s)
        said = {} if parent is None else json.loads(parent.scopes)
        made = [
            make_key(
                holder.name if parent is None else parent.name,
                now_s,
                scopes=json.dumps({**said, "run": holder.run, "agent": holder.agent}),
                expires_s=expires_s,
                fleet=True,
                parent=None if parent is None else parent.id,
            )
            for holder in holders
        ]
        await self.add([key.stored for key in made])
        return made

    async def take_back(self, key_id: str, lender: HashedKey | None) -> bool:
        """End a fleet's key for the bearer of the key it was made under (None: for the owner of all); False if none is.

        Raises:
            NotAllowedError: `lender` is a fleet's key itself.
        """
        if lender is not None and lender.fleet:
            raise NotAllowedError(
                "the key of a fleet's agent ends no keys; use the key that the fleet was started with"
            )
        key = await self._store.find(key_id)
        if key is None or not key.fleet:
            return False
        # By name: a key that was replaced by another of its name still has the run that was begun with it.
        if lender is not None and (key.parent is None or key.name != lender.name):
            return False
        return await self.revoke(key_id)

    async def check(self, presented: str) -> HashedKey | None:
        """Give the key that was presented, or None when it is unknown, wrong, expired or revoked, or its parent is."""
        prefix, _, rest = presented.partition("-")
        key_id, _, secret = rest.partition("-")
        if prefix != PREFIX or not secret or len(presented) > 200:  # noqa: PLR2004 - longer than any key we make
            return None
        key = await self._find(key_id)
        known_digest = key.digest if key is not None else _digest("")
        matches = hmac.compare_digest(_digest(secret), known_digest)
        if key is None or not matches or not in_force(key, self._clock.now_s()):
            return None
        parent = await self.parent_of(key)
        return key if parent is None or in_force(parent, self._clock.now_s()) else None

    async def parent_of(self, key: HashedKey) -> HashedKey | None:
        """Give the key that a fleet's key was made under; None if under none."""
        return None if key.parent is None else await self._find(key.parent)

    async def any_standing(self) -> bool:
        """Whether anybody ever made a key to stay, in force or not: ending the last one must not open the door.

        A fleet's own keys do not count. A no may be `CACHED_S` old.
        """
        now_s = self._clock.now_s()
        stale = self._standing is None or not 0 <= now_s - self._standing[0] < CACHED_S
        if self._standing is None or (stale and not self._standing[1]):
            self._standing = (now_s, bool(await self._store.all()))
        return self._standing[1]

    async def all(self) -> list[HashedKey]:
        """Give every key that somebody made to stay."""
        return await self._store.all()

    async def rotate(self, name: str, grace_s: float = 0.0) -> tuple[NewKey, int]:
        """Make a key in the place of those of a name, which end in `grace_s` seconds; give it, and how many end.

        It has the limits, the attribution and the end of the newest. It counts before they end, so that whoever is
        killed in between leaves both, and may do it again.

        Raises:
            CallerError: no key of this name is in force, or `grace_s` is longer than `MOST_GRACE_S`.
        """
        if not 0 <= grace_s <= MOST_GRACE_S:
            raise CallerError(
                f"a grace of {grace_s / 86_400:g} days is too long; expected at most {MOST_GRACE_S / 86_400:g} days"
            )
        now_s = self._clock.now_s()
        old = [key for key in await self._store.all() if key.name == name and in_force(key, now_s)]
        if not old:
            raise CallerError(f"no key named {name[:50]!r} is in force; make one with `headgate keys create`")
        new = make_key(name, now_s, limits=old[-1].limits, scopes=old[-1].scopes, expires_s=old[-1].expires_s)
        await self.add([new.stored])
        ended = [await self.revoke(key.id, now_s + grace_s) for key in old]
        return new, sum(ended)

    async def revoke(self, key_id: str, at_s: float | None = None) -> bool:
        """End a key, now or at an instant to come; False if there is none that would last longer."""
        self._cached.pop(key_id, None)
        return await self._store.revoke(key_id, self._clock.now_s() if at_s is None else at_s)

    def forget(self) -> None:
        """Ask the store anew for every key: another process has ended or made some."""
        self._cached.clear()
        self._standing = None

    async def _find(self, key_id: str) -> HashedKey | None:
        now_s = self._clock.now_s()
        cached = self._cached.get(key_id)
        if cached is not None and 0 <= now_s - cached[0] < CACHED_S:
            return cached[1]
        key = await self._store.find(key_id)
        self._cached[key_id] = (now_s, key)
        self._cached.move_to_end(key_id)
        while len(self._cached) > MOST_CACHED:
            self._cached.popitem(last=False)
        return key


def in_force(key: HashedKey, now_s: float) -> bool:
    """Whether a key lets its bearer in now."""
    return all(end_s is None or end_s > now_s for end_s in (key.revoked_s, key.expires_s))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
