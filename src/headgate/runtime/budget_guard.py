"""The budget guard: watches a running stream whose budget holds only what is likely, where its owner wants that.

One rule: it asks the store only once a stream goes beyond what is held for it; a store that cannot answer ends nothing.
"""

from collections.abc import Callable, Mapping, Sequence

from headgate.core.amounts import Amounts, Demand
from headgate.core.errors import HeadgateError, StoreError
from headgate.core.extending import ends_streams, extend
from headgate.core.levels import Level
from headgate.core.limits import Limit
from headgate.core.quota import Reservation, units_of
from headgate.core.usage import CHARGES, Counting, Usage
from headgate.runtime.admission import Admission
from headgate.runtime.planning import MOST_TRIES, PLANS, serial_of
from headgate.runtime.streaming import Telling

STEP_TOKENS = 64
"""So much output is held ahead, and let go by between two looks: a second of a stream."""


class BudgetEndedError(HeadgateError):
    """A running stream's budget is spent: it is to be ended, well."""

    def __init__(self, limit: Limit) -> None:
        """Name the limit."""
        super().__init__(f"{limit.name} is spent")
        self.limit = limit
        self.last_words = b""
        """What ends the stream, once somebody who knows its dialect has said it."""


class BudgetGuard:
    """Watches one attempt."""

    def __init__(
        self,
        admission: Admission,
        attempt: str,
        limits: tuple[Limit, ...],
        asked: Demand,
        counting: Counting,
        estimate: Usage,
        price: Callable[[Usage], int | None],
    ) -> None:
        """Watch what was `asked`; `estimate` stands for an input that is not told yet."""
        self._admission = admission
        self._attempt = attempt
        self._limits = limits
        self._counting = counting
        self._estimate = estimate
        self._price = price
        self._held = {limit.name: (limit.place, units_of(limit, asked) or 0) for limit in limits if ends_streams(limit)}
        self._next_tokens = 0

    @property
    def watches(self) -> bool:
        """Whether there is anything to watch."""
        return bool(self._held)

    def estimated(self, answer: Telling) -> Usage:
        """Give what a stream has used that has not told its input yet."""
        return self._estimate._replace(output_tokens=answer.output_seen_tokens, reported=False)

    async def look(self, answer: Telling) -> None:
        """Hold what comes next of a stream, if that is more than is held.

        Raises:
            BudgetEndedError: there is not so much left.
        """
        seen = answer.output_seen_tokens
        if seen < self._next_tokens:
            return
        self._next_tokens = seen + STEP_TOKENS
        told = answer.usage or self.estimated(answer)
        if told.reported and answer.usage is not None:
            return  # it has ended
        so_far, ahead = self._charged(told, 0), self._charged(told, STEP_TOKENS)
        if all((ahead[place] or 0) <= held for place, held in self._held.values()):
            return
        try:
            spent = await self._extended(so_far, ahead)
        except StoreError:  # the settlement has all of it
            return
        if spent is not None:
            raise BudgetEndedError(spent)
        self._held = {name: (place, max(held, ahead[place] or 0)) for name, (place, held) in self._held.items()}

    async def _extended(self, so_far: Amounts, ahead: Amounts) -> Limit | None:
        planned = self._admission.planned
        spent: Limit | None = None
        is_known = True

        def step(
            limits: Sequence[Limit], levels: Mapping[str, Level], reserved: Reservation, now_s: float
        ) -> tuple[dict[str, Level], Reservation | None]:
            nonlocal spent, is_known
            is_known = PLANS not in levels or serial_of(levels) == planned.serial
            if not is_known:
                return {}, reserved
            changed, rest, spent = extend(limits, levels, reserved, so_far, ahead, now_s, planned.parts_of(limits))
            return changed, rest

        for _ in range(MOST_TRIES):
            await self._admission.change(self._attempt, self._limits, step, reads=(PLANS,))
            if is_known:
                break
            await planned.refresh()  # another process has planned
        return spent

    def _charged(self, told: Usage, more: int) -> Amounts:
        usage = told._replace(output_tokens=told.output_tokens + more)
        return CHARGES[self._counting](usage, self._price(usage))
