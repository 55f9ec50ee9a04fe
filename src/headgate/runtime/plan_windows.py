"""Plan windows: an account's configured ones end when its provider says, not when Headgate would have thought.

One rule: what an answer says is taken up beside the call, never before it: it waits for nothing here, and where no plan
window is configured, or none is told, nothing is done. What a header means is an adapter's affair.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from headgate.core.errors import StoreError
from headgate.core.instants import to_ns, to_s
from headgate.core.limits import SAME_END_NS, Limit, Window
from headgate.core.notices import plan_windows_of
from headgate.core.told import believed_plans
from headgate.ports import Answer, Clock, LevelStore, Record

log = logging.getLogger("headgate.plan_windows")

_Ends = Sequence[tuple[Window, int]]


class PlanWindows:
    """Moves the plan windows of one process's calls, in a store that other processes may share."""

    def __init__(self, store: LevelStore, clock: Clock, nudge: Callable[[Sequence[Limit]], None]) -> None:
        """`nudge` lets the calls that wait for limits look again: a window may end earlier than they were told."""
        self._store = store
        self._clock = clock
        self._nudge = nudge
        # By level, and so bounded by what is configured for accounts: what need not be taken to the store again.
        self._kept_ns: dict[str, int] = {}
        self._moving: set[asyncio.Task[None]] = set()

    def follow(self, limits: Sequence[Limit], answer: Answer) -> None:
        """Take up what the head of an answer says of the plan windows among the limits that its call met."""
        windows = plan_windows_of(limits)
        if not windows:
            return
        now_s = self._clock.now_s()
        notices = believed_plans(answer.notices(now_s), now_s)
        ends: list[tuple[Window, int]] = []
        for window, period_s in windows:
            ends_s = notices.plan_ends_s(period_s)
            if ends_s is not None and abs(to_ns(ends_s) - self._kept_ns.get(window.name, 0)) > SAME_END_NS:
                ends.append((window, to_ns(ends_s)))
        if not ends:
            return
        # At once, not when the store has it: of a hundred answers with the same news, one goes there.
        self._kept_ns.update((window.name, ends_ns) for window, ends_ns in ends)
        task = asyncio.create_task(self._move(ends), name="move plan windows")
        self._moving.add(task)
        task.add_done_callback(self._moving.discard)

    async def close(self) -> None:
        """Return when all that was heard is in the store, or could not be brought there."""
        while self._moving:
            await asyncio.wait(self._moving)

    async def _move(self, ends: _Ends) -> None:
        def step(records: Mapping[str, Record]) -> tuple[dict[str, Record | None], _Ends]:
            # What another process has moved there already is no news, so that moving twice is moving once.
            now_ns = to_ns(self._clock.now_s())
            changed: dict[str, Record | None] = {}
            moved = []
            for window, ends_ns in ends:
                level = window.moved(records.get(window.name), now_ns, ends_ns)
                if level is not None:
                    changed[window.name] = level
                    moved.append((window, ends_ns))
            return changed, moved

        try:
            moved = await self._store.transact([window.name for window, _ends_ns in ends], step)
        except StoreError as error:
            for window, _ends_ns in ends:
                self._kept_ns.pop(window.name, None)
            log.warning("a plan window was not moved, the next answer tries again: %s", error)
            return
        for window, ends_ns in moved:
            log.info("%s ends at %.0f s, as its provider says", window.name, to_s(ends_ns))
        self._nudge([window for window, _ends_ns in moved])
