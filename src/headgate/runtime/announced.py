"""Announced: the configuration that each gateway goes by, kept in the store that it shares with whoever asks.

One rule: a file may be edited at any time, so what a process goes by is what it said itself, as long as it lives. What
the words mean is not known here.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from headgate.ports import LevelStore, Record

PREFIX = "config/"
"""Of the records, one for each process."""


class Announced(NamedTuple):
    """A process goes by a configuration of these words, which stood in a file, since an instant."""

    owner: str
    path: str
    text: str
    since_s: float


async def announce(store: LevelStore, said: Announced, owner_is_alive: Callable[[str], bool]) -> None:
    """Keep what a process goes by from now on, in place of what it went by; what the dead went by is forgotten.

    Raises:
        StoreError: the store cannot be used.
    """
    known = [name for name in await store.names(PREFIX) if not owner_is_alive(name.removeprefix(PREFIX))]

    def step(_records: Mapping[str, Record]) -> tuple[Mapping[str, Record | None], None]:
        gone: dict[str, Record | None] = dict.fromkeys(known)
        return {**gone, PREFIX + said.owner: (said.path, said.text, said.since_s)}, None

    await store.transact([], step)


async def withdraw(store: LevelStore, owner: str) -> None:
    """Forget what a process went by.

    Raises:
        StoreError: the store cannot be used.
    """
    await store.transact([], lambda _records: ({PREFIX + owner: None}, None))


async def announced(store: LevelStore, owner_is_alive: Callable[[str], bool]) -> list[Announced]:
    """Give what the processes that live go by, the newest first.

    Raises:
        StoreError: the store cannot be used.
    """
    names = [name for name in await store.names(PREFIX) if owner_is_alive(name.removeprefix(PREFIX))]
    records = await store.transact(names, lambda found: ({}, {name: found[name] for name in names if name in found}))
    said = [Announced(name.removeprefix(PREFIX), *record) for name, record in records.items()]
    return sorted(said, key=lambda each: -each.since_s)
