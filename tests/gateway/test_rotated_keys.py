"""Keys of one name, of which one took another's place: the limits of those in force hold."""

import json

from standing_keys import a_standing_key, call


def test_a_restart_leaves_its_limits_to_a_key_whose_successor_was_revoked(with_stack):
    async def test(stack):
        manager = stack.house.manager
        old = await a_standing_key(stack, "ci", limits=json.dumps([{"requests_per_day": 1}]))
        new, _ended = await manager.keys.rotate("ci", 3_600)
        assert await manager.keys.revoke(new.stored.id)
        await manager.know_keys()  # as a start does
        assert [await call(stack, old.secret) for _ in range(3)] == [200, 429, 429]

    with_stack(test)
