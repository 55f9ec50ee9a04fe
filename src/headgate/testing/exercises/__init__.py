"""Exercise suites: what every adapter of a port has to do, shipped so that your own adapters can be held to it.

One rule: an exercise knows the port and nothing of the adapter; it is a function that takes a way to open the store and
raises AssertionError. A suite is a tuple of them:

    @pytest.mark.parametrize("exercise", LEVEL_EXERCISES, ids=name_of)
    def test_my_levels(exercise): asyncio.run(exercise(open_my_store))

Run them on `headgate.testing.virtual_time` or on any other loop.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

Store = TypeVar("Store")

OpenStore = Callable[[], AbstractAsyncContextManager[Store]]
"""Opens the store for the running loop and closes it at the end of the block.

Each exercise needs one that is empty at first; all stores that it opens, at once or one after another, in one thread or
in several, show the same data.
"""

Exercise = Callable[[OpenStore[Store]], Awaitable[None]]


def name_of(exercise: object) -> str:
    """Give an exercise's name, for the ids of parametrized tests."""
    return str(getattr(exercise, "__name__", exercise))
