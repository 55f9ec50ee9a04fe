"""Settlements: what an attempt used replaces its hold, and its row gets its outcome, once and whoever is cancelled.

One rule: both are queued in the store before anything is waited for, so that they are kept together; doing them again
is doing them once, since the hold's own record decides and a row is final once.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace

from headgate.core.amounts import NOTHING, Amounts
from headgate.core.errors import CallerError, StoreError
from headgate.core.ledger import Attempt
from headgate.core.usage import CHARGES, NO_USAGE, Usage, keeps_reserved
from headgate.ports import Clock, Cost, LedgerStore, Prices
from headgate.runtime.admission import Admission
from headgate.runtime.grants import Grant
from headgate.runtime.taking import let_be
from headgate.runtime.used import cost_of, used

MOST_UNNOTED = 10_000
"""Rows that are kept to be written later while the store fails; of what is beyond nothing is lost but the row."""


class Settlements:
    """The settlements of one process."""

    def __init__(
        self,
        admission: Admission,
        ledger: LedgerStore,
        prices: Prices,
        clock: Clock,
        finished: Callable[[Grant], None],
        settled: Callable[[Grant], None],
    ) -> None:
        """Tell `finished` what is settled and recorded, and `settled` what need not be waited for any more."""
        self._admission = admission
        self._ledger = ledger
        self._prices = prices
        self._clock = clock
        self._finished = finished
        self._settled = settled
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._all_done = asyncio.Event()
        self._unkept: dict[str, Grant] = {}
        self._unnoted: dict[str, tuple[Attempt, Attempt]] = {}

    async def settle(self, grant: Grant) -> None:
        """Settle and record an attempt that has ended; cancelled, it goes on, and `close` waits for it."""
        self._under_way += 1
        try:
            await self._keep(grant)
        except asyncio.CancelledError:
            # What was queued is done in any case; again, for what was not.
            self.go_on(self._keep(grant), f"settle {grant.attempt.id}")
            raise
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._all_done.set()

    def go_on(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Do something whoever is cancelled; `close` waits for it."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def keep_unkept(self) -> int:
        """Try again to record what could not be recorded; give how many are left."""
        for grant in list(self._unkept.values()):
            await self._keep(grant)
        for begun, ended in list(self._unnoted.values()):
            await self._note(begun, ended)
        return len(self._unkept) + len(self._unnoted)

    async def close(self) -> None:
        """Wait until all that has ended is settled and recorded, or could not be."""
        while self._tasks or self._under_way:
            self._all_done.clear()
            await (asyncio.wait(self._tasks) if self._tasks else self._all_done.wait())

    async def _keep(self, grant: Grant) -> None:
        if grant.early is not None:
            await grant.early.ended()
        row, actual = grant.attempt, self._actual(grant)
        try:
            settling = self._admission.settling(row.id, grant.limits, actual)
            finishing = self._ledger.finish(row)
            try:
                await settling
                self._admission.settled(row.id, grant.limits, actual)
                await finishing
            finally:
                let_be(finishing)
        except StoreError:
            self._unkept[row.id] = grant
        else:
            self._unkept.pop(row.id, None)
            self._finished(grant)
        self._settled(grant)

    def _actual(self, grant: Grant) -> Amounts:
        row = grant.attempt
        actual = CHARGES[grant.counting](row.usage, row.cost_micro_usd)
        if not grant.sent:
            return NOTHING
        if keeps_reserved(grant.counting):  # what was reserved at the start is not given back, failed calls count too
            return actual._replace(tokens=max(actual.tokens, grant.asked.expected.tokens))
        return actual

    async def note(self, begun: Attempt, ended: Attempt) -> None:
        """Record a call of which nothing is held, and that has ended; cancelled, that goes on, and `close` waits."""
        await asyncio.shield(self.go_on(self._note(begun, ended), f"note {begun.id}"))

    async def _note(self, begun: Attempt, ended: Attempt) -> None:
        beginning, finishing = self._ledger.begin(begun), self._ledger.finish(ended)
        try:
            try:
                with suppress(CallerError):  # tried again: it was begun
                    await beginning
                await finishing
            finally:
                let_be(finishing)
        except StoreError:
            if len(self._unnoted) < MOST_UNNOTED:
                self._unnoted[begun.id] = begun, ended
        else:
            self._unnoted.pop(begun.id, None)

    async def note_refused(self, row: Attempt, limit: str) -> None:
        """Record that a call was not admitted: whoever wonders why its agents do nothing has to find it."""
        with suppress(StoreError):  # its caller is told in any case, and nothing was spent
            with suppress(CallerError):  # it was held and begun before, and had to give that back
                await self._ledger.begin(row)
            await self._ledger.finish(
                replace(row, state="refused", error_type=limit, sent=False, done_s=self._clock.now_s())
            )

    async def unbegin(self, row: Attempt) -> None:
        """Complete the row of an attempt that was not sent, because its caller left or the store failed."""
        with suppress(StoreError):
            await self._ledger.finish(
                replace(
                    row, state="cancelled", usage=NO_USAGE, cost_micro_usd=0, sent=False, done_s=self._clock.now_s()
                )
            )

    def cost(self, grant: Grant, usage: Usage, model_served: str | None) -> Cost:
        """Price what an attempt used, once for the same usage."""
        priced, row = grant.priced, grant.attempt
        if priced is None or priced[0] != usage or priced[1] != model_served:
            cost = cost_of(self._prices, row.model, model_served, usage, row.admitted_s)
            priced = grant.priced = usage, model_served, cost
        return priced[2]

    def outcome(self, grant: Grant) -> Attempt:
        """Give the row of an attempt that has ended."""
        row, failure = grant.attempt, grant.failure
        cut = grant.outcome == "cancelled" and grant.passage is not None
        usage = used(row.usage, grant.usage, failure, sent=grant.sent, cut=cut)
        cost = self.cost(grant, usage, grant.model_served)
        return Attempt(  # `replace` takes three times as long
            row.id,
            row.call,
            row.attempt,
            row.owner,
            row.scopes,
            row.endpoint,
            row.model,
            row.queued_s,
            row.admitted_s,
            usage,
            row.held_micro_usd,
            cost.micro_usd,
            cost.version,
            grant.outcome or "done",
            grant.model_served,
            grant.status,
            failure.error_type if failure is not None else None,
            grant.provider_request,
            grant.first_byte_s,
            self._clock.now_s(),
            grant.sent,
            row.asked_model,
            row.rule,
        )
