"""What every `LevelStore` has to do.

One rule: atomic, alone, durable, whatever fails or is cancelled. That limits hold over threads and processes is
`shared_limits`' affair.
"""

import asyncio
from collections.abc import Mapping, Sequence

from headgate.ports import LevelStore, Record
from headgate.testing.exercises import Exercise, OpenStore

Changes = Mapping[str, Record | None]

_CANCELLED = 4
"""Which of nine callers is cancelled."""


async def read(store: LevelStore, *names: str) -> dict[str, Record]:
    """Read records."""
    return await store.transact(names, lambda found: ({}, {name: found[name] for name in names if name in found}))


async def write(store: LevelStore, changes: Changes) -> None:
    """Write or delete records."""
    await store.transact([], lambda _: (changes, None))


async def add_one(store: LevelStore, name: str) -> int:
    """Count up in a record of one number, and give it."""

    def step(found: Mapping[str, Record]) -> tuple[Changes, int]:
        (count,) = found.get(name, (0,))
        return {name: (int(count) + 1,)}, int(count) + 1

    return await store.transact([name], step)


async def a_record_is_read_as_it_was_written(open_store: OpenStore[LevelStore]) -> None:
    """Numbers of any size, negative ones, text of any kind, and nothing at all."""
    records: dict[str, Record] = {
        "run:1 * requests rate-60s": (1_750_000_000_000_000_000, 0, -1),
        "large": (2**64, -(2**70), 10**30),
        "hold/host:1:2:3/attempt": (1, 'a "quoted" \\ name', "äöü 水 \U0001f6b0", "", 7),
        "empty": (),
    }
    async with open_store() as store:
        await write(store, records)
        assert await read(store, *records) == records
    async with open_store() as store:
        assert await read(store, *records) == records


async def a_step_sees_what_it_asked_for(open_store: OpenStore[LevelStore]) -> None:
    """A name without a record is absent."""
    async with open_store() as store:
        await write(store, {"a": (1,), "b": (2,), "c": (3,)})
        assert await read(store, "a", "c", "none", "a") == {"a": (1,), "c": (3,)}


async def a_step_may_write_what_it_did_not_ask_for(open_store: OpenStore[LevelStore]) -> None:
    """Also over a record that is there."""
    async with open_store() as store:
        await write(store, {"a": (1,)})
        await store.transact(["b"], lambda _: ({"a": (2,), "b": (3,)}, None))
        assert await read(store, "a", "b") == {"a": (2,), "b": (3,)}


async def a_record_can_be_deleted(open_store: OpenStore[LevelStore]) -> None:
    """Even if it is not there, and it can be written again."""
    async with open_store() as store:
        await write(store, {"a": (1,), "b": (2,)})
        await write(store, {"a": None, "never": None})
        assert await read(store, "a", "b", "never") == {"b": (2,)}
        assert await store.names("") == ["b"]
        await write(store, {"a": (3,)})
        assert await read(store, "a") == {"a": (3,)}


async def names_are_found_by_their_beginning(open_store: OpenStore[LevelStore]) -> None:
    """Sorted, without regard to what a pattern language would make of them."""
    names = ["hold/a/1", "hold/a/2", "hold/b/1", "holder", "hold", "run:% * x", "run:_ * x", "ä"]
    async with open_store() as store:
        await write(store, dict.fromkeys(names, (1,)))
        assert await store.names("") == sorted(names)
        assert await store.names("hold/") == ["hold/a/1", "hold/a/2", "hold/b/1"]
        assert await store.names("run:%") == ["run:% * x"]
        assert await store.names("run:_") == ["run:_ * x"]
        assert await store.names("ä") == ["ä"]
        assert await store.names("none") == []


async def a_step_that_raises_changes_nothing(open_store: OpenStore[LevelStore]) -> None:
    """Its exception is raised to its caller, and to nobody who is served at the same time."""
    seen: list[dict[str, Record]] = []

    def broken(found: Mapping[str, Record]) -> tuple[Changes, None]:
        seen.append({"a": found["a"]})
        raise LookupError("on purpose")

    async def fail(store: LevelStore) -> str:
        try:
            await store.transact(["a"], broken)
        except LookupError as error:
            return str(error)
        return "nothing was raised"

    async with open_store() as store:
        await write(store, {"a": (1,)})
        served = await asyncio.gather(add_one(store, "b"), fail(store), add_one(store, "b"), fail(store))
        assert [*served] == [1, "on purpose", 2, "on purpose"]
        assert await read(store, "a", "b") == {"a": (1,), "b": (2,)}
        assert seen == [{"a": (1,)}] * 2


async def a_record_that_cannot_be_kept_harms_only_its_own_step(open_store: OpenStore[LevelStore]) -> None:
    """A text that no file can hold comes from a client's header; those served at the same time must not notice."""
    unwritable: Record = ("\ud800",)

    async def spoil(store: LevelStore) -> None:
        try:
            await write(store, {"spoilt": unwritable})
        except UnicodeError:
            await write(store, {"spoilt": None})

    async with open_store() as store:
        served = await asyncio.gather(add_one(store, "a"), spoil(store), add_one(store, "a"))
        assert [*served] == [1, None, 2]
        assert await read(store, "a") == {"a": (2,)}


async def steps_run_one_after_another(open_store: OpenStore[LevelStore]) -> None:
    """Every step sees what the one before it wrote, those of one tick included."""
    async with open_store() as store, open_store() as other:
        counts = await asyncio.gather(*(add_one(some, "a") for _ in range(50) for some in (store, other)))
        assert sorted(counts) == list(range(1, 101))


async def a_store_sees_what_another_one_wrote(open_store: OpenStore[LevelStore]) -> None:
    """Also what it has read before, and what was deleted."""
    async with open_store() as store, open_store() as other:
        for round_number in range(1, 4):
            assert await add_one(store, "a") == 2 * round_number - 1
            assert await add_one(other, "a") == 2 * round_number
        assert await read(store, "none") == {}
        await write(other, {"a": None, "none": (1,)})
        assert await read(store, "a", "none") == {"none": (1,)}
        assert await store.names("") == ["none"]


async def a_caller_that_is_cancelled_harms_nobody(open_store: OpenStore[LevelStore]) -> None:
    """Its own step may have been done or not; all others are done once."""
    async with open_store() as store:
        for ticks in range(4):
            name = f"after {ticks}"
            tasks = [asyncio.create_task(add_one(store, name)) for _ in range(9)]
            for _ in range(ticks):
                await asyncio.sleep(0)
            tasks[_CANCELLED].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            others = [result for position, result in enumerate(results) if position != _CANCELLED]
            assert all(isinstance(result, int) for result in others), results
            (count,) = (await read(store, name))[name]
            assert count in (8, 9)
            assert len(set(others)) == len(others)


async def a_thousand_records_can_be_asked_for_at_once(open_store: OpenStore[LevelStore]) -> None:
    """A dashboard reads every level there is."""
    names: Sequence[str] = [f"session:{number:04} * requests rate-60s" for number in range(1_100)]
    async with open_store() as store:
        await write(store, {name: (number,) for number, name in enumerate(names)})
    async with open_store() as store:
        assert list((await read(store, *names)).values()) == [(number,) for number in range(1_100)]
        assert await store.names("session:") == names


async def records_that_say_nothing_are_forgotten_piece_by_piece(open_store: OpenStore[LevelStore]) -> None:
    """Each is looked at once before it begins anew; those that stay, stay as they were."""
    looked_at: list[str] = []

    def is_odd(name: str, record: Record, untouched_s: float) -> bool:
        assert untouched_s >= 0
        looked_at.append(name)
        return bool(record[0] % 2)

    names = [f"session:{number} * requests day" for number in range(7)]
    async with open_store() as store:
        assert await store.forget(is_odd, 3)
        await write(store, {name: (number,) for number, name in enumerate(names)})
        assert [await store.forget(is_odd, 3) for _ in range(3)] == [False, False, True]
        assert sorted(looked_at) == names
        assert await store.names("") == names[::2]
        assert await read(store, *names) == {name: (2 * number,) for number, name in enumerate(names[::2])}
        await write(store, {names[0]: (1,)})
        while not await store.forget(is_odd, 3):
            pass
    async with open_store() as store:
        assert await store.names("") == names[2::2]


async def forgetting_in_one_tick_with_changes_sees_them(open_store: OpenStore[LevelStore]) -> None:
    """Whatever comes first, a change that was acknowledged is not undone, and what was forgotten is not read."""
    seen: list[int] = []

    def is_old(_name: str, record: Record, _untouched_s: float) -> bool:
        seen.append(record[0])
        return bool(record[0] == 1)

    async with open_store() as store:
        await write(store, {"a": (1,)})
        counts = await asyncio.gather(add_one(store, "a"), store.forget(is_old, 9), add_one(store, "a"))
        assert [*counts] == [2, True, 3]
        assert seen == [2]
        await write(store, {"b": (1,)})
        forgotten, count = await asyncio.gather(store.forget(is_old, 9), add_one(store, "b"))
        assert (forgotten, count) == (True, 1)
        assert await read(store, "a", "b") == {"a": (3,), "b": (1,)}


LEVEL_EXERCISES: tuple[Exercise[LevelStore], ...] = (
    a_record_is_read_as_it_was_written,
    a_step_sees_what_it_asked_for,
    a_step_may_write_what_it_did_not_ask_for,
    a_record_can_be_deleted,
    names_are_found_by_their_beginning,
    a_step_that_raises_changes_nothing,
    a_record_that_cannot_be_kept_harms_only_its_own_step,
    steps_run_one_after_another,
    a_store_sees_what_another_one_wrote,
    a_caller_that_is_cancelled_harms_nobody,
    a_thousand_records_can_be_asked_for_at_once,
    records_that_say_nothing_are_forgotten_piece_by_piece,
    forgetting_in_one_tick_with_changes_sees_them,
)


async def a_change_by_another_store_wakes_who_waits(open_store: OpenStore[LevelStore]) -> None:
    """What changed before the waiting began counts too; what a store changes itself does not."""
    async with open_store() as store, open_store() as other:
        await write(store, {"own": (1,)})
        waiting = asyncio.create_task(store.wait_changed())
        await asyncio.sleep(1)
        assert not waiting.done()
        await write(other, {"a": (1,)})
        async with asyncio.timeout(1):
            await waiting
        await write(other, {"a": (2,)})
        async with asyncio.timeout(1):
            await store.wait_changed()
        waiting = asyncio.create_task(store.wait_changed())
        await asyncio.sleep(1)
        assert not waiting.done()
        waiting.cancel()


SHARED_LEVEL_EXERCISES: tuple[Exercise[LevelStore], ...] = (a_change_by_another_store_wakes_who_waits,)
"""For stores that several processes share; run it on `headgate.testing.virtual_time`, because it waits for seconds."""
