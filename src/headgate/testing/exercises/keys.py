"""What every `KeyStore` has to do.

One rule: a key is kept as it was given, ends once, and never begins again.
"""

import asyncio
from dataclasses import replace

from headgate.core.errors import CallerError
from headgate.ports import HashedKey, KeyStore
from headgate.testing.exercises import Exercise, OpenStore

NOW_S = 1_750_000_000.0


def a_key(number: int) -> HashedKey:
    """Give a key in which every field has a value of its own."""
    digest = bytes(range(number, number + 32))
    limits, scopes = '[{"requests_per_minute":5}]', '{"team":"sürch"}'
    return HashedKey(f"key-{number}", f"name {number}", digest, NOW_S + number, limits, scopes, NOW_S + 1000 + number)


async def a_key_is_found_as_it_was_given(open_store: OpenStore[KeyStore]) -> None:
    """By another store too, and when it is opened again."""
    plain = HashedKey("plain", "", b"\x00" * 32, NOW_S)
    async with open_store() as store, open_store() as other:
        assert await store.find("plain") is None
        await store.add([a_key(1), plain])
        assert await other.find("plain") == plain
        assert await store.find("key-1") == a_key(1)
        assert await store.find("") is None
    async with open_store() as store:
        assert await store.find("key-1") == a_key(1)


async def all_keys_come_oldest_first(open_store: OpenStore[KeyStore]) -> None:
    """Those that ended among them, and no fleet's own."""
    async with open_store() as store:
        assert await store.all() == []
        await store.add([replace(a_key(9), fleet=True)])
        assert await store.find("key-9") == replace(a_key(9), fleet=True)
        await store.add([a_key(3), a_key(1)])
        await store.add([a_key(2)])
        await store.add([])
        assert await store.revoke("key-1", NOW_S + 9)
        assert await store.all() == [replace(a_key(1), revoked_s=NOW_S + 9), a_key(2), a_key(3)]


async def keys_are_added_all_or_none(open_store: OpenStore[KeyStore]) -> None:
    """An id that is taken, or there twice, is the caller's mistake; keys added at the same time stay."""

    async def is_refused(store: KeyStore, *numbers: int) -> bool:
        try:
            await store.add([a_key(number) for number in numbers])
        except CallerError:
            return True
        return False

    async with open_store() as store:
        await store.add([replace(a_key(1), name="first")])
        refused = await asyncio.gather(
            is_refused(store, 2), is_refused(store, 3, 1), is_refused(store, 4, 4), is_refused(store, 5)
        )
        assert [*refused] == [False, True, True, False]
        assert [key.id for key in await store.all()] == ["key-1", "key-2", "key-5"]
        first = await store.find("key-1")
        assert first is not None
        assert first.name == "first"


async def a_key_ends_once(open_store: OpenStore[KeyStore]) -> None:
    """The first time counts, whoever comes later."""
    async with open_store() as store, open_store() as other:
        await store.add([a_key(1), a_key(2)])
        assert not await store.revoke("none", NOW_S)
        ended = await asyncio.gather(store.revoke("key-1", NOW_S + 5), store.revoke("key-1", NOW_S + 5))
        assert sorted(ended) == [False, True]
        assert not await other.revoke("key-1", NOW_S + 6)
        assert await other.find("key-1") == replace(a_key(1), revoked_s=NOW_S + 5)
        assert await other.find("key-2") == a_key(2)


async def a_key_that_ends_later_may_end_before(open_store: OpenStore[KeyStore]) -> None:
    """An end that is to come may come sooner, and never later."""
    async with open_store() as store, open_store() as other:
        await store.add([a_key(1)])
        assert await store.revoke("key-1", NOW_S + 60)
        assert not await other.revoke("key-1", NOW_S + 61)
        assert await other.revoke("key-1", NOW_S + 5)
        assert not await store.revoke("key-1", NOW_S + 60)
        assert await store.find("key-1") == replace(a_key(1), revoked_s=NOW_S + 5)


async def a_fleets_keys_are_forgotten_when_they_have_ended(open_store: OpenStore[KeyStore]) -> None:
    """And only they; those in force are counted by the key that they were made under."""
    lent = [replace(a_key(number), fleet=True, parent="key-9") for number in range(1, 5)]
    own = replace(a_key(5), fleet=True, expires_s=None)
    ended = replace(a_key(8), expires_s=NOW_S)
    async with open_store() as store, open_store() as other:
        await store.add([*lent, own, replace(a_key(6), fleet=True, parent="other"), ended, a_key(9)])
        assert await store.find("key-1") == lent[0]
        assert await store.revoke("key-1", NOW_S + 9)
        assert await store.revoke("key-9", NOW_S + 9)
        # key-2 expires at 1002 s after the start: at that instant it is over.
        counts = [await other.prune_fleet(parent, NOW_S + 1002) for parent in ("key-9", "other", None, "nobody")]
        assert counts == [2, 1, 1, 0]
        assert [await store.find(f"key-{number}") for number in (1, 2)] == [None, None]
        assert await store.find("key-3") == lent[2]
        assert [key.id for key in await store.all()] == ["key-8", "key-9"]


KEY_EXERCISES: tuple[Exercise[KeyStore], ...] = (
    a_key_is_found_as_it_was_given,
    all_keys_come_oldest_first,
    keys_are_added_all_or_none,
    a_key_ends_once,
    a_key_that_ends_later_may_end_before,
    a_fleets_keys_are_forgotten_when_they_have_ended,
)
