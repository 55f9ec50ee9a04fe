"""Keys: made, replaced and ended, by a clock that the test turns."""

import asyncio
import json

import pytest

from headgate.adapters.memory import MemoryKeyStore
from headgate.core.errors import CallerError
from headgate.runtime.keys import CACHED_S, MOST_GRACE_S, Holder, Keys, make_key


class TurnedClock:
    def __init__(self) -> None:
        self.at_s = 1_790_000_000.0

    def now_s(self) -> float:
        return self.at_s


class Desk:
    """Two processes' keys over one store."""

    def __init__(self) -> None:
        self.clock, self.store = TurnedClock(), MemoryKeyStore()
        self.here, self.elsewhere = Keys(self.store, self.clock), Keys(self.store, self.clock)

    async def lets_in(self, secret: str) -> bool:
        here, elsewhere = await self.here.check(secret), await self.elsewhere.check(secret)
        assert (here is None) == (elsewhere is None)
        return here is not None

    async def made(self, name: str, **more):
        key = make_key(name, self.clock.now_s(), **more)
        await self.here.add([key.stored])
        return key


def test_without_a_grace_the_old_key_ends_here_at_once_and_elsewhere_within_a_second():
    async def test():
        desk = Desk()
        old = await desk.made("ci", limits='[{"requests_per_day": 1}]', scopes=json.dumps({"team": "t"}))
        assert await desk.lets_in(old.secret)
        new, ended = await desk.here.rotate("ci")
        assert ended == 1
        assert await desk.here.check(old.secret) is None
        assert await desk.here.check(new.secret) == new.stored
        assert (new.stored.name, new.stored.limits, new.stored.scopes) == ("ci", old.stored.limits, old.stored.scopes)
        desk.clock.at_s += CACHED_S
        assert not await desk.lets_in(old.secret)
        assert await desk.lets_in(new.secret)

    asyncio.run(test())


def test_with_a_grace_both_work_until_it_is_over():
    async def test():
        desk = Desk()
        old = await desk.made("ci", expires_s=desk.clock.now_s() + 86_400)
        new, _ = await desk.here.rotate("ci", 3_600)
        assert new.stored.expires_s == old.stored.expires_s
        desk.clock.at_s += 3_599
        assert await desk.lets_in(old.secret)
        assert await desk.lets_in(new.secret)
        desk.clock.at_s += 1
        assert not await desk.lets_in(old.secret)
        assert await desk.lets_in(new.secret)

    asyncio.run(test())


def test_a_key_that_ends_later_can_be_ended_now_and_no_later():
    async def test():
        desk = Desk()
        old = await desk.made("ci")
        await desk.here.rotate("ci", 3_600)
        newer, ended = await desk.here.rotate("ci", 7_200)
        assert ended == 1, "the first ends no later for it"
        assert await desk.here.revoke(old.stored.id)
        assert await desk.here.check(old.secret) is None
        assert await desk.here.check(newer.secret) is not None

    asyncio.run(test())


def test_an_agents_key_ends_with_the_one_it_was_made_under():
    async def test():
        desk = Desk()
        old = await desk.made("ci")
        (lent,) = await desk.here.lend(old.stored, [Holder("r1", "north", "r1/north")], 7_200)
        await desk.here.rotate("ci", 3_600)
        desk.clock.at_s += 3_599
        assert await desk.lets_in(lent.secret)
        desk.clock.at_s += 1
        assert not await desk.lets_in(lent.secret)

    asyncio.run(test())


@pytest.mark.parametrize("ended_by", ["expiry", "revocation"])
def test_what_has_ended_is_not_replaced(ended_by):
    async def test():
        desk = Desk()
        key = await desk.made("ci", expires_s=desk.clock.now_s() + 60)
        if ended_by == "revocation":
            await desk.here.revoke(key.stored.id)
        else:
            desk.clock.at_s += 60
        with pytest.raises(CallerError, match="no key named 'ci' is in force"):
            await desk.here.rotate("ci")
        assert len(await desk.here.all()) == 1

    asyncio.run(test())


@pytest.mark.parametrize("grace_s", [-1, MOST_GRACE_S + 1, float("nan")])
def test_a_grace_has_a_bound(grace_s):
    async def test():
        desk = Desk()
        await desk.made("ci")
        with pytest.raises(CallerError, match="expected at most"):
            await desk.here.rotate("ci", grace_s)

    asyncio.run(test())


def test_a_key_ends_at_the_instant_it_expires_without_being_looked_up_anew():
    async def test():
        desk = Desk()
        key = await desk.made("ci", expires_s=desk.clock.now_s() + 60)
        desk.clock.at_s += 59.9
        assert await desk.lets_in(key.secret)
        desk.clock.at_s += 0.1
        assert not await desk.lets_in(key.secret)

    asyncio.run(test())


def test_a_secret_is_compared_whole_and_shown_nowhere():
    async def test():
        desk = Desk()
        key = await desk.made("ci")
        for wrong in (
            key.secret[:-1],
            key.secret + "0",
            key.secret.upper(),
            key.secret.replace("hg-", "HG-"),
            "hg--",
            "",
        ):
            assert not await desk.lets_in(wrong)
        assert await desk.lets_in(key.secret)
        secret = key.secret.rpartition("-")[2]
        assert secret not in repr(key)
        assert secret not in repr(await desk.here.all())

    asyncio.run(test())
